"""What the arguments of all tools share."""

from pydantic import BaseModel, ConfigDict


class Arguments(BaseModel):
    """Arguments of a tool: those named here and no others; each is described beside it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
