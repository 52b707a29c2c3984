"""Builds the application: which deployments there are, and their settings in Ray Serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig

from adapterhub.deploy.ray.config import ECHO, ApplicationConfig
from adapterhub.deploy.ray.front import Front
from adapterhub.deploy.ray.hub_replica import HubReplica
from adapterhub.engine.echo import EchoEngine
from adapterhub.hub import AdapterHub
from adapterhub.registry.remote.opening import configured_registry

OpenHub = Callable[[ApplicationConfig], AdapterHub]

_ROUTER = "adapterhub.deploy.ray.affinity_router.AffinityRouter"
_STATS_SECONDS = 1.0
"""How often replicas publish which adapters they have; Ray's 10 s are longer than adapters stay loaded under load."""
_HEALTH_SECONDS = 5.0
_UPSCALE_SECONDS = 10.0
_DOWNSCALE_SECONDS = 300.0
_RETRY_SECONDS = 1.0
_DRAIN_CHECK_SECONDS = 0.5


def app(config: ApplicationConfig) -> serve.Application:
    """The application, for `serve run adapterhub.deploy.ray:app` and for Serve's config files.

    Args:
        config: The settings.

    Raises:
        ConfigError: A setting is not valid.
    """
    return application(config, open_hub)


def application(config: ApplicationConfig, open_the_hub: OpenHub) -> serve.Application:
    """The application with hubs of one's own.

    Args:
        config: The settings.
        open_the_hub: Opens the hub of a replica, in its process.

    Raises:
        ConfigError: A setting is not valid.
    """
    config = config.resolved()
    replicas = serve.deployment(HubReplica, **_replica_options(config)).bind(config, open_the_hub)
    return serve.deployment(serve.ingress()(Front), **_front_options(config)).bind(replicas, config)


def open_hub(config: ApplicationConfig) -> AdapterHub:
    """The hub of a replica.

    Args:
        config: The settings.

    Raises:
        ConfigError: The base or the registry cannot be opened.
    """
    if config.engine == ECHO:
        return AdapterHub(EchoEngine(), configured_registry(config.hub))
    return AdapterHub.from_pretrained(**config.hub.model_dump(exclude_unset=True))


def _replica_options(config: ApplicationConfig) -> dict[str, Any]:
    limits = config.hub.limits
    in_flight = 2 * limits.max_batch_size
    return {
        "max_ongoing_requests": in_flight,
        "max_queued_requests": limits.max_queue,
        "backpressure_config": _backpressure(),
        "request_router_config": RequestRouterConfig(
            request_router_class=_ROUTER, request_routing_stats_period_s=_STATS_SECONDS
        ),
        "ray_actor_options": {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        "health_check_period_s": _HEALTH_SECONDS,
        **_number(config, limits.max_batch_size),
        **_draining(config),
    }


def _number(config: ApplicationConfig, batch: int) -> dict[str, Any]:
    """How many replicas."""
    if config.max_replicas is None:
        return {"num_replicas": config.replicas}
    scaling = AutoscalingConfig(
        min_replicas=config.replicas,
        max_replicas=config.max_replicas,
        target_ongoing_requests=batch,
        upscale_delay_s=_UPSCALE_SECONDS,
        downscale_delay_s=_DOWNSCALE_SECONDS,
    )
    return {"autoscaling_config": scaling}


def _front_options(config: ApplicationConfig) -> dict[str, Any]:
    return {
        "num_replicas": config.fronts,
        "max_ongoing_requests": config.server.max_connections,
        "max_queued_requests": config.server.max_connections,
        "backpressure_config": _backpressure(),
        "ray_actor_options": {"num_cpus": 0},
        **_draining(config),
    }


def _draining(config: ApplicationConfig) -> dict[str, float]:
    return {
        "graceful_shutdown_timeout_s": config.server.drain_seconds,
        "graceful_shutdown_wait_loop_s": _DRAIN_CHECK_SECONDS,
    }


def _backpressure() -> BackpressureConfig:
    return BackpressureConfig(status_code=429, retry_after_s=_RETRY_SECONDS)
