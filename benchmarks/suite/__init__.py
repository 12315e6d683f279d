"""A development suite: small and diverse settings in which a default must work."""
