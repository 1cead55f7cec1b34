"""The example is served and answers as the KServe tutorial prints it."""

from pathlib import Path

from service.app import create_app
from service.settings import read_settings

IRIS = Path(__file__).parent.parent / "examples" / "iris" / "model.ubj"


def test_the_kserve_tutorial_gets_its_printed_answer() -> None:
    client = create_app(read_settings({"SCORER_MODEL": str(IRIS)})).test_client()
    rows = [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]
    answer = client.post("/v1/models/iris:predict", json={"instances": rows})
    assert answer.get_json() == {"predictions": [1.0, 1.0]}
