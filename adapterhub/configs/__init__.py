"""Configurations that ship with the package, one YAML file each: `<task>/<base>.yaml`."""

from adapterhub.configs.shipped import ShippedConfig, copy_config, read_config, shipped_configs

__all__ = ["ShippedConfig", "copy_config", "read_config", "shipped_configs"]
