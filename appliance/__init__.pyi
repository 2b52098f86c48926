from appliance.client import AsyncClient as AsyncClient
from appliance.client import Client as Client
from appliance.runtime.offline import Engine as Engine
