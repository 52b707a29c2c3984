"""Builds the application: which deployments there are, and their settings in Ray Serve."""

# Without postponed annotations: Ray reads the class of the argument of `app` from its signature.

from collections.abc import Callable
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig

from adapterhub.deploy.ray.config import ECHO, ApplicationConfig
from adapterhub.deploy.ray.front import Front
from adapterhub.deploy.ray.hub_replica import HubReplica
from adapterhub.engine.echo import EchoEngine
from adapterhub.hub import AdapterHub
from adapterhub.registry.remote import configured_registry

OpenHub = Callable[[ApplicationConfig], AdapterHub]

_ROUTER = "adapterhub.deploy.ray.affinity_router.AffinityRouter"
_STATS_SECONDS = 1.0
"""How often replicas publish which adapters they have; in the 10 s that Ray waits, many come and go."""
_BATCHES = 2
"""What a replica has at a time: a batch that runs, and one that waits for its places. More wait in the front, where the
first replica that has room gets them. Ray's default of 5 requests leaves a batch of 32 almost empty."""
_UPSCALE_SECONDS = 10.0
"""A queue that lasts this long is no burst; Ray waits 30 s, and then a base has to load."""
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
    batch = limits.max_batch_size * max(len(config.urls), 1)
    return {
        "max_ongoing_requests": _BATCHES * batch,
        "max_queued_requests": limits.max_queue,
        "backpressure_config": _backpressure(),
        "request_router_config": RequestRouterConfig(
            request_router_class=_ROUTER, request_routing_stats_period_s=_STATS_SECONDS
        ),
        "ray_actor_options": {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        **_number(config, batch),
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
