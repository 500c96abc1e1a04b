"""The application: which request gets which answer."""

import asyncio
import base64
import io
import json
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from PIL import Image
from starlette.exceptions import HTTPException

from transfer_learning import __version__
from transfer_learning.datasets.decoding.decode import EXPENSIVE, Decoded
from transfer_learning.datasets.decoding.workers import CHEAP, SLOW, DecodeWorkers
from transfer_learning.exports.predictor import ImagePredictor
from transfer_learning.machine.resources import usable_cores
from transfer_learning.serving import inference_protocol as v2
from transfer_learning.serving.batching import BATCH_SIZES, Batcher, padded
from transfer_learning.serving.drift import Drift, Reference
from transfer_learning.serving.guard import RETRY_AFTER, Guard, Limits, Refused
from transfer_learning.serving.metrics import Metrics

logger = logging.getLogger(__name__)

SECONDS_TO_DECODE = 10
DECODERS_PER_CORE = 2  # so that small images pass those that take long
MAX_IMAGES = BATCH_SIZES[-1]  # per request
MAX_WAITING_LARGE = 32  # images in the slow lane
TopK = Annotated[int, Query(ge=1, description="number of classes that are named, the most probable first")]
PAGE = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
IMAGE_BODY = {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
PREDICT_BODY = {
    "content": IMAGE_BODY["content"]
    | {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {"images": {"type": "array", "items": {"type": "string", "format": "byte"}}},
            }
        }
    }
}


class Answer(NamedTuple):
    """The result for one image."""

    probabilities: np.ndarray  # float32 (classes,)
    features: np.ndarray | None  # float32 (width,); None from an export
    pixels: np.ndarray  # uint8 (size, size, 3), which the network saw


class _Lane:
    """Processes that decode images, and threads that wait for them."""

    def __init__(self, name: str, count: int, predictor: ImagePredictor, limits: Limits):
        self.in_work = 0
        self._threads = ThreadPoolExecutor(count, f"decode {name}")
        self._workers = DecodeWorkers(
            predictor.image_size,
            predictor.resize,
            seconds=SECONDS_TO_DECODE,
            max_pixels=limits.pixels,
            ranges=predictor.value_ranges,
            lane=name,
        )

    async def decode(self, content: bytes) -> Decoded:
        """Waits for a process that is free, and returns what it decodes."""
        self.in_work += 1  # images
        try:
            loop = asyncio.get_running_loop()
            return (await loop.run_in_executor(self._threads, self._workers.decode, content))[1]
        finally:
            self.in_work -= 1

    def close(self) -> None:
        """Ends threads and processes."""
        self._workers.close()
        self._threads.shutdown(cancel_futures=True)


class Service:
    """A predictor with what all requests share: decoders, queue, counts.

    Args:
        name: of the model, in the paths of the Open Inference Protocol.
        reference: the validation images, to which drift is measured.
    """

    def __init__(self, predictor: ImagePredictor, name: str, limits: Limits, reference: Reference | None = None):
        self.predictor, self.name, self.limits = predictor, name, limits
        self.is_ready = False
        self.drift = Drift(reference) if reference is not None else None
        self.metrics = Metrics(predictor.class_names, self.drift)
        self._batcher = Batcher(self._predict, self.metrics.batch_size.observe)
        self._cheap = _Lane(CHEAP, DECODERS_PER_CORE * usable_cores(), predictor, limits)
        self._slow = _Lane(SLOW, max(1, usable_cores() // 2), predictor, limits)
        # Decoders that requests with several images may take.
        self._share_of_several = asyncio.Semaphore(usable_cores())
        # Images of requests with one and of those with several, each up to the limit: the latter refuse none of the former.
        self._in_work = {True: 0, False: 0}

    async def start(self) -> None:
        """Computes a batch of each size, because the first one takes longer, and starts a decoder."""
        blank = np.zeros((self.predictor.image_size, self.predictor.image_size, 3), np.uint8)
        for size in BATCH_SIZES:
            await self._batcher.run(self._predict, padded([blank] * size))
        await self._cheap.decode(b"")
        self.is_ready = True

    def close(self) -> None:
        """Ends threads and processes; called when no request is left."""
        self.is_ready = False
        self._batcher.close()
        self._cheap.close()
        self._slow.close()

    async def predict(self, images: Sequence[bytes] | np.ndarray) -> list[Answer | str]:
        """Predicts encoded images, or pixels (n, size, size, 3).

        Returns:
            For each image its answer, or why it cannot be decoded.

        Raises:
            Refused: there are too many images, in the request or in all of them together.
        """
        if not 0 < len(images) <= MAX_IMAGES:
            raise Refused(413 if len(images) else 400, f"Send 1 to {MAX_IMAGES} images per request.")
        with self._room_for(len(images)):
            rows = await _all(self._predict_one(image, len(images) == 1) for image in images)
        answers = [row for row in rows if isinstance(row, Answer)]
        self.metrics.count_images(
            [row.probabilities for row in answers], len(rows) - len(answers), self.predictor.rejection_threshold
        )
        if self.drift is not None:
            for row in answers:
                self.drift.add(row.probabilities[None], None if row.features is None else row.features[None])
        return rows

    async def decode(self, content: bytes, is_lone: bool = True) -> np.ndarray | str:
        """Returns uint8 (size, size, 3), or why an image cannot be decoded; Refused if too many large ones wait."""
        async with nullcontext() if is_lone else self._share_of_several:
            image = await self._cheap.decode(content)
        if image.kind == EXPENSIVE:
            if self._slow.in_work >= MAX_WAITING_LARGE:
                raise Refused(503, "Too many large images are waiting; try again in a second.", RETRY_AFTER)
            image = await self._slow.decode(content)
        return image.problem or image.pixels

    async def grad_cam(self, content: bytes, class_index: int) -> bytes:
        """Returns a PNG; Refused if the image cannot be decoded, or if this is an export."""
        draw = getattr(self.predictor, "grad_cam", None)
        if draw is None:
            raise Refused(404, "An export has no Grad-CAM; serve the run that it was made from.")
        with self._room_for(1):
            pixels = await self.decode(content)
            if isinstance(pixels, str):
                raise _undecodable(pixels)
            return await self._batcher.run(draw, pixels, class_index)

    async def _predict_one(self, image: bytes | np.ndarray, is_lone: bool) -> Answer | str:
        pixels = await self.decode(image, is_lone) if isinstance(image, bytes) else image
        if isinstance(pixels, str):
            return pixels
        probabilities, features = await self._batcher.predict(pixels, is_lone)
        return Answer(probabilities, features, pixels)

    def _predict(self, batch: np.ndarray) -> list[tuple[np.ndarray, np.ndarray | None]]:
        with_features = getattr(self.predictor, "probabilities_and_features", None)
        if with_features is None:
            return [(row, None) for row in self.predictor.probabilities(batch)]
        return list(zip(*with_features(batch), strict=True))

    @contextmanager
    def _room_for(self, count: int) -> Iterator[None]:
        is_lone = count == 1
        if self._in_work[is_lone] + count > self.limits.images:
            raise Refused(503, "Too many images are waiting; try again in a second.", RETRY_AFTER)
        self._in_work[is_lone] += count
        self.metrics.images_in_work.inc(count)
        try:
            yield
        finally:
            self._in_work[is_lone] -= count
            self.metrics.images_in_work.dec(count)


def make_app(service: Service, token: str = "", host_names: Sequence[str] = ()) -> FastAPI:
    """Returns the ASGI application; it starts and closes `service`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        service.close()

    # No /docs and /redoc: FastAPI's load scripts from another host.
    app = FastAPI(
        title=f"{service.name} (transfer-learning)",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(
        Guard, limits=service.limits, token=token, host_names=host_names, observe=service.metrics.count_request
    )
    app.add_exception_handler(HTTPException, lambda request, error: answer({"error": error.detail}, error.status_code))
    app.add_exception_handler(RequestValidationError, lambda request, error: answer({"error": _invalid(error)}, 422))
    app.add_exception_handler(Refused, lambda request, error: error.response())
    _add_own_routes(app, service)
    _add_inference_protocol(app, service)
    for path, (file, kind) in PAGE.items():
        _add_file(app, path, (Path(__file__).parent / file).read_bytes(), kind)
    return app


def answer(content: Any, status: int = 200) -> Response:
    """Returns JSON in ASCII, because a class name may hold bytes that are not UTF-8."""
    return Response(json.dumps(content, allow_nan=False), status, media_type="application/json")


def _add_own_routes(app: FastAPI, service: Service) -> None:
    predictor, class_names = service.predictor, service.predictor.class_names
    positions = {name: position for position, name in reversed(list(enumerate(class_names)))}

    @app.post("/predict", openapi_extra={"requestBody": PREDICT_BODY})
    async def predict(request: Request, top_k: TopK = 5, pixels: bool = False) -> Response:
        """Predicts one image, which is the body, or several, in base64 in JSON: ``{"images": ["..."]}``.

        ``pixels=true`` adds a PNG of what the network saw, as a data URI.
        """
        body = request.state.body
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            (row,) = await service.predict([body])
            if isinstance(row, str):
                raise _undecodable(row)
            return answer(_as_json(row, predictor, top_k, pixels))
        images = v2.json_object(body).get("images")
        if not isinstance(images, list):
            raise Refused(400, 'Expected {"images": ["...", ...]} with images in base64.')
        rows = await service.predict([v2.from_base64(text) for text in images])
        shown = [{"error": row} if isinstance(row, str) else _as_json(row, predictor, top_k, pixels) for row in rows]
        return answer({"predictions": shown})

    @app.post("/grad-cam", openapi_extra={"requestBody": {"content": IMAGE_BODY}})
    async def grad_cam(request: Request, class_name: str = Query(alias="class")) -> Response:
        """Returns a PNG: the image with the regions that support a class in colour."""
        if class_name not in positions:
            raise Refused(404, "There is no such class; GET /model lists them.")
        return Response(await service.grad_cam(request.state.body, positions[class_name]), media_type="image/png")

    @app.get("/model")
    async def model() -> Response:
        """Returns what is served, and drift since the start."""
        return answer(
            {
                "name": service.name,
                "version": __version__,
                "class_names": list(class_names),
                "image_size": predictor.image_size,
                "rejection_threshold": predictor.rejection_threshold,
                "has_grad_cam": hasattr(predictor, "grad_cam"),
                "max_bytes": service.limits.body_bytes,
                "drift": service.drift.summary() if service.drift else None,
            }
        )

    @app.get("/health")
    async def health() -> Response:
        """Returns 200 as long as the process answers."""
        return answer({"status": "alive"})

    @app.get("/ready")
    async def ready() -> Response:
        """Returns 200 while new requests are welcome, else 503."""
        return answer({"status": "ready"}) if service.is_ready else answer({"status": "not ready"}, 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Returns the metrics in the text format of Prometheus."""
        return Response(*service.metrics.text())


def _add_inference_protocol(app: FastAPI, service: Service) -> None:
    predictor = service.predictor
    model_path = "/v2/models/{model}"

    def check(model: str, version: str = v2.VERSION) -> None:
        if (model, version) != (service.name, v2.VERSION):
            raise Refused(404, f"There is no such model; this server has {service.name}, version {v2.VERSION}.")

    @app.get("/v2")
    async def server_metadata() -> Response:
        return answer({"name": "transfer-learning", "version": __version__, "extensions": ["binary_tensor_data"]})

    @app.get("/v2/health/live")
    async def live() -> Response:
        return answer({"live": True})

    @app.get("/v2/health/ready")
    async def server_ready() -> Response:
        return answer({"ready": service.is_ready}, 200 if service.is_ready else 503)

    @app.get(f"{model_path}/ready")
    @app.get(f"{model_path}/versions/{{version}}/ready")
    async def model_ready(model: str, version: str = v2.VERSION) -> Response:
        check(model, version)
        return answer({"name": model, "ready": service.is_ready}, 200 if service.is_ready else 503)

    @app.get(model_path)
    @app.get(f"{model_path}/versions/{{version}}")
    async def model_metadata(model: str, version: str = v2.VERSION) -> Response:
        check(model, version)
        return answer(v2.model_metadata(model, predictor.image_size, len(predictor.class_names)))

    @app.post(f"{model_path}/infer")
    @app.post(f"{model_path}/versions/{{version}}/infer")
    async def infer(request: Request, model: str, version: str = v2.VERSION) -> Response:
        """Predicts the images of one tensor; an image that cannot be decoded is an error of the whole request."""
        check(model, version)
        asked = v2.read_request(request.state.body, request.headers.get(v2.JSON_LENGTH), predictor.image_size)
        rows = await service.predict(asked.images)
        for number, row in enumerate(rows):
            if isinstance(row, str):
                raise Refused(400, f"Image {number}: {row}.")
        table = np.stack([row.probabilities for row in rows if isinstance(row, Answer)])
        values = {
            "probabilities": table,
            "confidence": table.max(axis=1),
            "label": [predictor.class_names[position] for position in table.argmax(axis=1)],
            "rejected": table.max(axis=1) < predictor.rejection_threshold,
        }
        content, json_length = v2.write_response(asked, model, values)
        if json_length is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={v2.JSON_LENGTH: str(json_length)})


def _add_file(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    @app.get(path, include_in_schema=False)
    async def file() -> Response:
        return Response(content, media_type=kind)


def _as_json(row: Answer, predictor: ImagePredictor, top_k: int, with_pixels: bool) -> dict[str, Any]:
    order = np.argsort(-row.probabilities, kind="stable")[:top_k]
    confidence = float(row.probabilities[order[0]])
    result: dict[str, Any] = {
        "class": predictor.class_names[order[0]],
        "confidence": confidence,
        "rejected": confidence < predictor.rejection_threshold,
        "top": [
            {"class": predictor.class_names[position], "probability": float(row.probabilities[position])}
            for position in order
        ],
    }
    if with_pixels:
        stream = io.BytesIO()
        Image.fromarray(row.pixels).save(stream, "PNG", compress_level=1)
        result["pixels"] = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return result


async def _all(coroutines: Iterable[Coroutine[Any, Any, Answer | str]]) -> list[Answer | str]:
    """What all of them return, in order; the first exception ends the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _undecodable(problem: str) -> Refused:
    return Refused(400, f"The image cannot be used: {problem}.")


def _invalid(error: RequestValidationError) -> str:
    return "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()[:3]) + "."
