"""Requests in the form of OpenAI's API, as pydantic models, and what a client is told of one that is wrong.

Types are strict: "1" is no number. A field that is null is as if it were not there. A field that would change the
answer elsewhere, and that this server doesn't have, is refused; those of `HARMLESS` change none.
"""

import re
import secrets
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tpullm.recipe.sampling import Sampling
from tpullm.serving.refusal import Refusal

# Clients of OpenAI's send these of themselves, or for OpenAI's own bookkeeping: they change no answer here.
HARMLESS = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"})
MOST_CHOICES = MOST_PROMPTS = 128
ROLES = ("system", "developer", "user", "assistant", "tool")
SEEDS = 1 << 31


class _Object(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    ignored: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None and name not in cls.ignored}


class _Open(_Object):
    """What may have more fields: clients send back what others gave them."""

    model_config = ConfigDict(extra="ignore")


def _allow_only(*allowed: Any, why: str) -> BeforeValidator:
    """Refuse all other values of a field; 0 and false are told apart."""

    def check(value: Any) -> Any:
        if any(type(value) is type(one) and value == one for one in allowed):
            return value
        raise ValueError(why)

    return BeforeValidator(check)


UNSUPPORTED = "is not supported by this server; leave it out"
_Answers = Annotated[int, Field(ge=1, le=MOST_CHOICES)]
_Tokens = Annotated[int, Field(ge=1, le=1 << 30)]
_Top = Annotated[int, Field(ge=0, le=20)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]  # as OpenAI's, in nats


class StreamOptions(_Object):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: Annotated[bool, _allow_only(False, why=UNSUPPORTED)] = False


class Asked(_Object):
    """The fields that completions and chat have in common, with OpenAI's defaults: no token is cut off.

    `top_k` and `min_p` are those of other servers.
    """

    ignored = HARMLESS

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=1e-6, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=1 << 30)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63), AfterValidator(lambda seed: seed % SEEDS)] = Field(
        default_factory=lambda: secrets.randbelow(SEEDS)
    )
    n: _Answers = 1
    stop: Annotated[  # with every beginning of these each new token is compared
        Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=4)],
        BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop),
    ] = []
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = {}
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: _Tokens | None = None

    @field_validator("logit_bias")
    @classmethod
    def _tokens_of_the_model(cls, bias: dict[str, float], info: ValidationInfo) -> dict[int, float]:
        size = info.context["vocabulary_size"]
        known = {name for name in bias if re.fullmatch("[0-9]{1,9}", name) and int(name) < size}
        if wrong := next((name for name in bias if name not in known), None):
            raise ValueError(f"{wrong[:20]!r} is not a token of this model (0 to {size - 1})")
        return {int(name): value for name, value in bias.items()}

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options: needs stream: true")
        return self

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(temperature=self.temperature, top_k=max(0, self.top_k), top_p=self.top_p, min_p=self.min_p)

    @property
    def usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


def _is_token_ids(given: Any, size: int) -> bool:
    return isinstance(given, list) and bool(given) and all(type(item) is int and 0 <= item < size for item in given)


class TextRequest(Asked):
    """A request to `/v1/completions`. `prompt` is a text, texts, ids, or lists of ids; here always a list."""

    prompt: list[str | list[int]]
    max_tokens: _Tokens = 16  # as OpenAI's
    best_of: _Answers | None = None
    suffix: Annotated[str, _allow_only("", why=UNSUPPORTED)] = ""
    echo: bool = False
    logprobs: _Top | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompts(cls, given: Any, info: ValidationInfo) -> list[str | list[int]]:
        size = info.context["vocabulary_size"]
        prompts = [given] if isinstance(given, str) or _is_token_ids(given, size) else given
        if not (isinstance(prompts, list) and all(isinstance(one, str) or _is_token_ids(one, size) for one in prompts)):
            raise ValueError(f"is not a text, a list of texts, or lists of token ids (0 to {size - 1}); correct it")
        if not 0 < len(prompts) <= MOST_PROMPTS:
            raise ValueError(f"has {len(prompts)} prompts; give 1 to {MOST_PROMPTS}")
        return prompts

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.best_of not in (None, self.n):
            raise ValueError("best_of: is not supported by this server; leave it out, or use n")
        if self.tells_prompt and self.stop:
            raise ValueError("stop: is not supported with echo and logprobs; leave it out")
        if len(self.prompt) * self.n > MOST_CHOICES:
            raise ValueError(f"prompt: times n is more than {MOST_CHOICES} answers; send several requests")
        return self

    @property
    def tells_prompt(self) -> bool:
        """Whether the tokens of the prompt are told as well."""
        return self.echo and self.logprobs is not None


class TextPart(_Open):
    """A part of a message's content."""

    type: Annotated[str, _allow_only("text", why="is not read by this model; send parts of type text only")]
    text: str


_Content = Annotated[
    list[TextPart],
    BeforeValidator(lambda text: [{"type": "text", "text": text}] if isinstance(text, str) else text),
    AfterValidator(lambda parts: "".join(part.text for part in parts)),
]


class Message(_Object):
    """A message of the system or the user."""

    role: Literal["system", "developer", "user"]
    content: _Content
    name: str = ""

    def template_form(self) -> dict[str, Any]:
        """As chat templates take it."""
        role = "system" if self.role == "developer" else self.role
        more = self.model_dump(include={"name", "tool_calls", "tool_call_id"})
        return {"role": role, "content": self.content} | {name: value for name, value in more.items() if value}


class CalledFunction(_Open):
    """What a call called. Templates take its arguments as an object."""

    name: str
    arguments: Annotated[Json[dict[str, Any]], BeforeValidator(lambda text: "{}" if text == "" else text)]


class Call(_Open):
    """A call that was made before."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Message):
    """A message of the assistant, as clients send it back, with what this server and others added."""

    ignored = frozenset({"refusal", "annotations", "reasoning_content", "audio"})

    role: Literal["assistant"]
    content: _Content = Field(default="", validate_default=False)
    tool_calls: list[Call] = []

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.tool_calls and "content" not in self.model_fields_set:
            raise ValueError("content: is missing; give a text")
        return self


class ToolMessage(Message):
    """The result of a call."""

    role: Literal["tool"]
    tool_call_id: str


AnyMessage = Annotated[Message | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(_Object):
    """What a tool does."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str = ""
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
    strict: bool = Field(default=False, exclude=True)


class Tool(_Object):
    """A tool: always a function."""

    type: Literal["function"]
    function: Function


class ToolChoice(_Object):
    """`tool_choice`: a word, or the function that must be called."""

    type: Literal["none", "auto", "required", "function"] = "function"
    function: Function | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_a_word(cls, given: Any) -> Any:
        return given if isinstance(given, dict) else {"type": given}

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.type == "function") != (self.function is not None):
            raise ValueError("is not none, auto, required or a function")
        return self


class Schema(_Object):
    """`response_format.json_schema`."""

    name: str = ""
    description: str = ""
    strict: bool = False
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(_Object):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: Schema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if self.type == "json_schema" and not self.json_schema:
            raise ValueError("json_schema: is missing; give a JSON schema")
        return self

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON schema that the answer must satisfy, if any."""
        schemas = {"text": None, "json_object": {"type": "object"}}
        return self.json_schema.schema_ if self.type == "json_schema" else schemas[self.type]


class ChatRequest(Asked):
    """A request to `/v1/chat/completions`."""

    messages: Annotated[list[AnyMessage], Field(min_length=1, max_length=2_048)]
    max_completion_tokens: _Tokens | None = None
    logprobs: bool = False
    top_logprobs: _Top | None = None
    modalities: Annotated[list[str], _allow_only(["text"], why="is not [text]: the model answers in text")] = ["text"]
    tools: Annotated[list[Tool], Field(max_length=128)] = []
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat()
    truncation: Literal["auto", "disabled"] = "disabled"  # as OpenAI's Responses have it

    @model_validator(mode="after")
    def _together(self) -> Self:
        names = [tool.function.name for tool in self.tools]
        choice = self.tool_choice
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs: true")
        if len(set(names)) < len(names):
            raise ValueError("tools: has two functions of the same name")
        if choice and choice.function and choice.function.name not in names:
            raise ValueError(f"tool_choice: {choice.function.name[:80]!r} is not in tools")
        if choice and choice.type == "required" and not names:
            raise ValueError("tool_choice: is required, and there are no tools")
        if self.must_call and self.response_format.schema_of_answer is not None:
            raise ValueError("tool_choice: asks for a call, and response_format for JSON; leave one of them out")
        return self

    @property
    def shown_tools(self) -> list[dict[str, Any]]:
        """The tools that the model sees, as chat templates take them."""
        is_none = self.tool_choice and self.tool_choice.type == "none"
        return [] if is_none else [tool.model_dump() for tool in self.tools]

    @property
    def must_call(self) -> list[dict[str, Any]]:
        """The functions that the answer has to choose from; empty if it need not call one."""
        choice, functions = self.tool_choice, [tool["function"] for tool in self.shown_tools]
        if choice and choice.function:
            return [function for function in functions if function["name"] == choice.function.name]
        return functions if choice and choice.type == "required" else []


class AttentionRequest(_Object):
    """Which earlier tokens each token of a text looks at, in a picture with words of a language."""

    model: str
    prompt: Annotated[str, Field(min_length=1)]
    language: Literal["en", "ja"] = "en"


_Request = TypeVar("_Request", bound=_Object)
# What is told in other words than pydantic's.
_WORDS = {
    "missing": "is missing; give it",
    "extra_forbidden": "is not a field that this server knows; leave it out",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "is not an object"),
    **dict.fromkeys(("json_invalid", "json_type"), "is not a JSON object in a text"),
    "union_tag_not_found": "role: is missing; give it",
    "union_tag_invalid": f"role: is not one of {', '.join(ROLES)}",
}


def validated_request(kind: type[_Request], body: dict[str, Any], vocabulary_size: int) -> _Request:
    """A body as a request of its kind; `Refusal` names the first field that is wrong, and says why."""
    try:
        return kind.model_validate(body, context={"vocabulary_size": vocabulary_size})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    where = ""
    for part in first["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif not (where.endswith("]") and part in ROLES):  # the tag of the union is no field
            where += f".{part[:100]}"
    told = _WORDS.get(first["type"]) or first.get("ctx", {}).get("error") or first["msg"]
    said = re.sub(r"^\w+ should", "should", str(told))
    if named := re.match(r"(\w+): (.*)", said):  # a check of several fields names one of them
        where, said = f"{where}.{named[1]}", named[2]
    where = where.removeprefix(".")
    raise Refusal(f"{where}: {said[:300]}", param=where)
