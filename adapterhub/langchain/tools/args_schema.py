"""The base class of all tools' arguments."""

from pydantic import BaseModel, ConfigDict


class Arguments(BaseModel):
    """Arguments of a tool: closed to unknown names, described by their attribute docstrings."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
