"""The YAML file that describes a comparison, its checks, and the cells it expands into. No torch."""
