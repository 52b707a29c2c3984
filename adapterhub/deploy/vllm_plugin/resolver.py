"""vLLM's `LoRAResolver` over a registry; imported inside vLLM only."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus

from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from adapterhub.deploy.vllm_plugin.registered_adapters import RegisteredAdapters
from adapterhub.errors import AdapterHubError

_log = logging.getLogger("vllm.adapterhub")


class RegistryResolver(LoRAResolver):  # type: ignore[misc]  # vLLM is not installed where this is checked
    """Finds the adapter that a request's `model` names; vLLM asks it once for each name.

    Args:
        adapters: The registry's adapters.
    """

    def __init__(self, adapters: RegisteredAdapters) -> None:
        self._adapters = adapters

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter to load; None if the registry has none of that name, which vLLM answers with 404.

        Args:
            base_model_name: vLLM's `--model`.
            lora_name: The `model` of a request.

        Raises:
            VLLMValidationError: There is one, and it may not answer: vLLM answers with 400 and the reason.
            GracefulHTTPError: The registry cannot be read: vLLM answers with 503 if a retry may help, else with 500.
        """
        try:
            folder = await asyncio.to_thread(self._adapters.folder, lora_name, base_model_name)
        except AdapterHubError as error:
            _log.warning("adapterhub: %r is not served: %s", lora_name[:200], error)
            if error.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR:  # nothing is wrong with the request
                raise GracefulHTTPError(str(error), HTTPStatus(error.http_status)) from error
            raise VLLMValidationError(str(error), parameter="model") from error
        if folder is None:
            return None
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(folder))  # vLLM sets the id
