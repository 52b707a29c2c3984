"""The settings that the deployments get in Ray Serve, without a cluster."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: `make test-ray` installs it")
from ray import serve

from adapterhub import ConfigError
from adapterhub.deploy.ray import ApplicationConfig, app
from adapterhub.deploy.ray.application import open_hub


def deployments(**arguments: Any) -> tuple[serve.Deployment, serve.Deployment]:
    """Of the front and of the replicas."""
    front = app(ApplicationConfig.model_validate({"engine": "echo", **arguments}))
    (replicas, _) = front._bound_deployment.init_args
    return front._bound_deployment, replicas._bound_deployment


def test_a_replica_takes_a_batch_and_one_that_waits():
    _, replicas = deployments(max_batch_size=8, max_queue=100)
    assert replicas.max_ongoing_requests == 16
    assert replicas.max_queued_requests == 100


def test_a_replica_over_vllm_servers_takes_as_much_for_each_of_them():
    _, replicas = deployments(engine="http://one:8000,http://two:8000", max_batch_size=8)
    assert replicas.max_ongoing_requests == 32


def test_what_is_too_much_is_told_to_come_again():
    for deployment in deployments():
        assert deployment.backpressure_config.status_code == 429
        assert deployment.backpressure_config.retry_after_s == 1


def test_replicas_have_the_resources_that_were_given_and_fronts_none():
    front, replicas = deployments(num_cpus=4, num_gpus=0.5, replicas=3, fronts=2)
    assert replicas.ray_actor_options == {"num_cpus": 4, "num_gpus": 0.5}
    assert front.ray_actor_options["num_cpus"] == 0
    assert (front.num_replicas, replicas.num_replicas) == (2, 3)


def test_the_number_of_replicas_follows_the_load_between_two_bounds():
    _, replicas = deployments(replicas=2, max_replicas=5, max_batch_size=8)
    scaling = replicas._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 5)
    assert scaling.target_ongoing_requests == 8


def test_both_drain_as_long_as_the_server():
    for deployment in deployments(drain_seconds=7):
        assert deployment._deployment_config.graceful_shutdown_timeout_s == 7


def test_ray_finds_the_class_of_the_arguments():
    assert inspect.signature(app).parameters["config"].annotation is ApplicationConfig


def test_a_bad_argument_starts_nothing():
    with pytest.raises(ConfigError, match="no replica"):
        deployments(replica=2)


def test_an_echo_hub_needs_no_base(tmp_path: Any):
    config = ApplicationConfig.model_validate({"engine": "echo", "registry": tmp_path}).resolved()
    with open_hub(config) as hub:
        assert hub.generate("Hello", None, raw=True).text == "[base] Hello"


def test_a_hub_in_the_process_has_its_base(tiny_base: Any, tmp_path: Any):
    arguments = {"base": str(tiny_base), "registry": tmp_path, "max_batch_size": 3, "quantization": "none"}
    with open_hub(ApplicationConfig.model_validate(arguments).resolved()) as hub:
        assert hub.engine.base_name == str(tiny_base)
