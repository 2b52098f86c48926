"""The family's math is the shared decoder's; its spec says what differs."""

from __future__ import annotations

from appliance.runtime.model.decoder import Decoder

Model = Decoder
