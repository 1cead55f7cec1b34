"""For those who start Gunicorn themselves: `gunicorn -c gunicorn.conf.py`.

`xgboost-server serve` uses the same options, checks before it starts, and can change the model while it serves.
"""

import os
import sys

from service.errors import StartError
from service.master import gunicorn_options
from service.settings import read_settings

try:
    globals().update(gunicorn_options(read_settings(os.environ)))
except StartError as error:
    sys.exit(f"xgboost-server: {error}")
