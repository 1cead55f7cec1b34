"""KServe's XGBoost server, as near as it can be had: kserve is on PyPI, its xgbserver only in KServe's image and source.

    python kserve_app.py --model_name NAME --model_file FILE --http_port PORT …

Between kserve's ModelServer and XGBoost it makes the calls that xgbserver 0.20 makes (KServe's repository,
python/xgbserver/xgbserver/model.py): a Booster with one thread, a DMatrix of what kserve finds in the request, `predict`,
and kserve's own answer. Left out is only what happens before the first request: fetching the model. XGBoost is the
version that we serve with; xgbserver 0.20 ships 2.1, which does not read today's model files.
"""

import argparse
from typing import Any

import kserve
import xgboost as xgb
from kserve.errors import InferenceError
from kserve.utils.utils import get_predict_input, get_predict_response

THREADS = 1


class BoosterModel(kserve.Model):  # type: ignore[misc]  # kserve is not installed where types are checked
    def __init__(self, name: str, file: str) -> None:
        super().__init__(name)
        self.booster = xgb.Booster({"nthread": THREADS}, model_file=file)
        self.ready = True

    def predict(self, payload: Any, headers: dict[str, str] | None = None, **_: Any) -> Any:
        try:
            matrix = xgb.DMatrix(get_predict_input(payload), nthread=THREADS)
            return get_predict_response(payload, self.booster.predict(matrix), self.name)
        except Exception as error:  # as broad as xgbserver 0.20's own: a comparison answers faults alike, too
            raise InferenceError(str(error)) from error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
    parser.add_argument("--model_file", required=True)
    arguments = parser.parse_args()
    kserve.ModelServer().start([BoosterModel(arguments.model_name, arguments.model_file)])
