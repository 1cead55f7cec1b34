"""The best server one writes in an afternoon: bare ASGI, orjson, `inplace_predict`, one XGBoost thread.

No framework, no validation, no metrics, no ids: all of its time goes into uvicorn, JSON and XGBoost.
The score is made on the event loop; handing it to a thread costs more than it gains on one core.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import orjson
import xgboost as xgb

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

booster = xgb.Booster({"nthread": 1}, model_file=os.environ["MODEL"])


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["path"] != "/predict":
        await answer(send, 404, b'{"error":"no such path"}')
        return
    instances = orjson.loads(await read_body(receive))["instances"]
    scores = booster.inplace_predict(np.array(instances, dtype=np.float32), validate_features=False)
    await answer(send, 200, orjson.dumps({"predictions": scores}, option=orjson.OPT_SERIALIZE_NUMPY))


async def read_body(receive: Receive) -> bytes:
    message = await receive()
    if not message.get("more_body"):
        return message["body"]  # type: ignore[no-any-return]  # bytes, says the ASGI specification
    parts = [message["body"]]
    while message.get("more_body"):
        message = await receive()
        parts.append(message["body"])
    return b"".join(parts)


async def answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
