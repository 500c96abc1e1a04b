"""The model of a run in MLflow: this file is stored beside the model, and run where that is loaded."""

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from transfer_learning.exports.predictor import Predictor


class Model(PythonModel):
    """Encoded images in, the table of `Predictor.predict` out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Opens the file of the run."""
        self._predictor = Predictor(context.artifacts["file"])

    def predict(self, model_input: list[bytes]) -> pd.DataFrame:  # type: ignore[override]  # MLflow takes both
        """Returns one row per image: file (""), class, confidence, rejected, problem."""
        return self._predictor.predict(model_input)


set_model(Model())
