"""Talk with a tuned model. /reset begins a new conversation, /quit ends the program.

With --prompt it answers once.
"""

from tpullm.cli.options import add_adapters, add_json, add_model, add_weights, check_at_least_one, print_json
from tpullm.recipe.sampling import GREEDY, Sampling, add_options, from_options
from tpullm.system.errors import UserError
from tpullm.system.log import say


def add_arguments(parser) -> None:
    """The options of `tpullm chat`."""
    add_model(parser)
    add_adapters(parser)
    add_weights(parser)
    parser.add_argument("--prompt", type=str, default="", help="answer this once")
    parser.add_argument("--tokens", type=int, default=200, help="at most this many tokens in an answer")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same answers")
    add_json(parser, "with --prompt: ")
    add_options(parser, GREEDY)


def main(arguments) -> None:
    """One answer with --prompt, else a conversation."""
    sampling = from_options(arguments)
    if arguments.json and not arguments.prompt:
        raise UserError("--json: answers one question; give it with --prompt TEXT")
    check_at_least_one(arguments, "tokens")
    if arguments.json and len(arguments.adapter) > 1:
        raise UserError("--json: answers with one adapter; give one --adapter")
    from tpullm.engine.session import load_with_adapters

    known = load_with_adapters(arguments.model, arguments.adapter, arguments.weights or "")
    session = next(iter(known.values()))
    if not session.talks:
        say("this model was not tuned on conversations: it continues the text, and may not answer")
    if not arguments.prompt:
        return converse(known, arguments.tokens, sampling, arguments.seed)
    messages = [{"role": "user", "content": arguments.prompt}]
    for adapter, session in known.items():
        if len(known) > 1:
            print(f"{adapter}:", flush=True)
        answer = reply(session, messages, arguments.tokens, sampling, arguments.seed, show=not arguments.json)
    if arguments.json:
        print_json({"prompt": arguments.prompt, "answer": answer})


def converse(known: dict, tokens: int, sampling: Sampling, seed: int) -> None:
    """Answer each line of the input until /quit, the end of the input or Ctrl-C.

    Args:
        known: the model with each of its adapters, by name; the first one answers until another is chosen.
    """
    say("Say something. /reset begins a new conversation, /quit ends.")
    if len(known) > 1:
        say(f"/adapter NAME lets another one answer: {', '.join(known)}")
    from tpullm.engine.engine import Engine

    answers = next(iter(known))
    engines = {name: Engine(known[name], rows=1) for name in known}  # each holds what it has read of the conversation
    messages: list[dict[str, str]] = []
    while True:
        try:
            line = input("> ").strip()
            if line == "/quit":
                return
            if line == "/reset":
                messages = []
                say("a new conversation")
            elif line.startswith("/adapter"):
                name = line.removeprefix("/adapter").strip()
                say(f"{name} answers now" if name in known else f"no adapter {name}; there are: {', '.join(known)}")
                answers = name if name in known else answers
            elif line:
                asked = [*messages, {"role": "user", "content": line}]
                answer = reply(known[answers], asked, tokens, sampling, seed, engine=engines[answers])
                messages = [*asked, {"role": "assistant", "content": answer}]
        except UserError as error:  # the line does not fit the context, and the conversation goes on without it
            say(str(error))
        except (EOFError, KeyboardInterrupt):
            print()
            return


def reply(session, messages, tokens: int, sampling: Sampling, seed: int, show: bool = True, engine=None) -> str:
    """The model's answer to the last message, printed while it is generated.

    Args:
        engine: of the conversation; None is a new one.
    """
    from tpullm.engine.generation import stream_tokens
    from tpullm.engine.request import whole_characters

    tokenizer = session.tokenizer
    prompt = _prompt_of_conversation(session, messages, tokens)
    tokens = min(tokens, max(1, session.context_length - len(prompt)))
    text = []
    for part in whole_characters(tokenizer, stream_tokens(session, prompt, tokens, sampling, seed, engine=engine)):
        text.append(part)
        if show:
            print(part, end="", flush=True)
    if show:
        print(flush=True)
    return "".join(text)


def _prompt_of_conversation(session, messages, tokens: int) -> list[int]:
    """The ids of the conversation. If it leaves no room for an answer, the oldest turns are dropped, with a message."""
    from tpullm.engine.session import check_context
    from tpullm.tokenizer.chat_template import without_old_turns

    def prompt_ids(kept) -> list[int]:
        return session.tokenizer.chat_template(kept, add_generation_prompt=True)[0]

    context = session.context_length
    messages, turns = without_old_turns(messages, lambda kept: len(prompt_ids(kept)), context, tokens)
    ids = prompt_ids(messages)
    if turns:
        say(f"the conversation is longer than the model's context: its oldest turns ({turns}) are left out")
    check_context(session, ids, "prompt")
    return ids
