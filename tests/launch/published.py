"""Requests as the published types of Google's APIs, by their client libraries."""

from urllib.parse import parse_qs, urlsplit

from google.cloud import batch_v1, tpu_v2
from google.protobuf import json_format

from tpullm.launch.google_api import Request

MODULES = {"tpu": tpu_v2, "batch": batch_v1}


def published(request: Request) -> dict:
    """The body of a request, parsed into its published type and written again; its query is parsed too.

    A call that the API lacks raises `AttributeError`, a field that a type lacks `ParseError`.
    """
    kind = getattr(MODULES[request.host.split(".")[0]], f"{request.call}Request")
    message = kind.pb(kind())
    query = {key: values[0] for key, values in parse_qs(urlsplit(request.url).query).items()}
    json_format.ParseDict({key: value == "true" or value for key, value in query.items()}, message)
    if request.body is None:
        return {}
    (field,) = (field for field in message.DESCRIPTOR.fields if field.message_type and not field.is_repeated)
    json_format.ParseDict({field.json_name: request.body}, message)
    return json_format.MessageToDict(getattr(message, field.name))
