"""Configurations that ship with the package, one YAML file each: `<task>/<base>.yaml`."""

from adapterhub.configs.shipped import ShippedConfig, copy_config, read_config, shipped_configs
from adapterhub.configs.user_path import UserPath

__all__ = ["ShippedConfig", "UserPath", "copy_config", "read_config", "shipped_configs"]
