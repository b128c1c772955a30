"""What `fuzz_serve.py` asks of every answer beyond schemathesis' own checks."""

import json

import jsonschema_rs
import schemathesis
from schemathesis.generation import GenerationMode

# Fields of which a schema cannot tell whether they can be served: ids beyond the vocabulary, expressions, templates, the context's length,
# and fields that need or exclude one another.
BEYOND_SCHEMAS = (
    "prompt",
    "messages",
    "tokens",
    "stop_token_ids",
    "stop",
    "logit_bias",
    "response_format",
    "seed",
    "stream_options",
    "smart_run.watch",
    "top_logprobs",
    "echo",
    "min_tokens",
    "n",
    "tools",
    "tool_choice",
)
CHUNKS = {"/v1/completions": "CompletionChunk", "/v1/chat/completions": "ChatChunk"}


@schemathesis.check
def refusals_name_their_field(ctx, response, case):
    """A request that fits its schema is refused for a field that schemas cannot tell all of, and the answer names it."""
    is_sound = case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE
    if response.status_code != 400 or not is_sound:
        return
    param = response.json()["error"]["param"]
    assert param is not None and param.startswith(BEYOND_SCHEMAS), f"a sound request is refused for {param!r}"


@schemathesis.check
def streams_end_well(ctx, response, case):
    """Every event is a chunk of its schema; the last one is [DONE], or an error behind which nothing comes."""
    if not response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        return
    events = [event for event in response.text.split("\n\n") if event and not event.startswith(":")]
    assert all(event.startswith("data: ") for event in events), "an event without data"
    data = [event.removeprefix("data: ") for event in events]
    assert data, "a stream without events"
    if data[-1] != "[DONE]":
        assert "error" in json.loads(data[-1]), "a stream ends without [DONE]"
    document = case.operation.schema.raw_schema
    reference = f"#/components/schemas/{CHUNKS[case.operation.path]}"
    chunks = jsonschema_rs.validator_for({"$ref": reference, "components": document["components"]})
    for event in data[:-1]:
        chunks.validate(json.loads(event))
