"""What an owner gives to be used and never shown again. All of it needs `admin`; no answer has a value."""

from typing import Annotated

from fastapi import APIRouter, Path, Response, status
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr
from pydantic_core import PydanticCustomError

from app import views
from app.dependencies import ReadSession, VaultHere, WriteSession
from app.security import Caller, needs
from models import secrets

router = APIRouter(tags=["secrets"])

LONGEST_VALUE = 8192
Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _of_whole_characters(value: SecretStr) -> SecretStr:
    """JSON can spell half a surrogate pair, which is no text."""
    try:
        value.get_secret_value().encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("invalid", "has half a character, a lone surrogate") from None
    return value


class NewValue(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    value: Annotated[SecretStr, Field(min_length=1, max_length=LONGEST_VALUE), AfterValidator(_of_whole_characters)]


@router.get("/secrets", openapi_extra=needs("admin"))
def list_secrets(session: ReadSession, who: Caller) -> views.Page[views.Secret]:
    """The caller's own, by name."""
    return views.Page(data=[views.Secret.model_validate(row) for row in secrets.listed(session, who.owner)])


@router.get("/secrets/{name}", openapi_extra=needs("admin"))
def read_secret(name: Name, session: ReadSession, who: Caller) -> views.Secret:
    """When it was made and changed. No answer ever has the value."""
    return views.Secret.model_validate(secrets.find(session, who.owner, name))


@router.put("/secrets/{name}", openapi_extra=needs("admin"), responses={201: {"model": views.Secret}})
def put_secret(
    name: Name, wanted: NewValue, session: WriteSession, response: Response, vault: VaultHere, who: Caller
) -> views.Secret:
    """Keep a value, or another one under the same name."""
    row, is_new = secrets.put(session, vault, who.owner, name, wanted.value)
    response.status_code = status.HTTP_201_CREATED if is_new else status.HTTP_200_OK
    return views.Secret.model_validate(row)


@router.delete("/secrets/{name}", status_code=status.HTTP_204_NO_CONTENT, openapi_extra=needs("admin"))
def delete_secret(name: Name, session: WriteSession, who: Caller) -> None:
    """409 with the code `secret_in_use` while a webhook signs with it."""
    secrets.delete(session, who.owner, name)
