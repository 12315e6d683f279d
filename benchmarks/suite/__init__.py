"""A development suite: small and diverse settings in which the defaults must work."""
