"""Networks, the distillation module, building both from a config, and gradient caching."""
