"""Networks, the distillation module, how a config becomes one, gradient caching."""
