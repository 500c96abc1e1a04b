"""The model of a run in LitServe, as its documentation shows for images: base64 in JSON, batches of up to 32.

python -m benchmarks.litserve_server RUN_DIR PORT, after https://lightning.ai/docs/litserve/features/batching
"""

import base64
import sys

import litserve
import numpy as np

from benchmarks.serving import as_json, pixels_of, predictor_of, probabilities_of

BATCH, TIMEOUT = 32, 0.005  # images, seconds


class Api(litserve.LitAPI):
    """LitServe starts it in a process of its own."""

    def setup(self, device):
        self.predictor = predictor_of(sys.argv[1])

    def decode_request(self, request):
        return pixels_of(self.predictor, base64.b64decode(request["image"]))

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, batch):
        return probabilities_of(self.predictor, batch)

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return as_json(self.predictor, output)


if __name__ == "__main__":
    api = Api(max_batch_size=BATCH, batch_timeout=TIMEOUT, api_path="/predict")
    litserve.LitServer(api, accelerator="cpu").run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
