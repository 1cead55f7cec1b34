"""Flask and XGBoost as most tutorials put them together; run by Gunicorn with four threads."""

import os

import numpy as np
import xgboost as xgb
from flask import Flask, Response, jsonify, request

app = Flask(__name__)
booster = xgb.Booster(model_file=os.environ["MODEL"])


@app.post("/predict")
def predict() -> Response:
    instances = np.array(request.get_json()["instances"])
    scores = booster.predict(xgb.DMatrix(instances))
    return jsonify({"predictions": scores.tolist()})
