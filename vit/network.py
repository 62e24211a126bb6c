"""Whether a network is there, found out before a library retries for minutes."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

from vit.foundation import UserError

SECONDS_TO_CONNECT = 1.0


def refuse_without_network(name: str, address: str, advice: str, *, offline: str = "") -> None:
    """Raises UserError, within two seconds, when `address` can't be reached, directly or by the proxy that is set.

    Args:
        name: what is wanted from there.
        address: a URL.
        advice: what else to do.
        offline: why no connection may be tried, where that is so.
    """
    place = urlsplit(getproxies().get("https") or address)
    host, port = place.hostname or address, place.port or 443
    try:
        if offline:
            raise OSError(offline)
        socket.create_connection((host, port), timeout=SECONDS_TO_CONNECT).close()
    except OSError as error:
        raise UserError(
            f"{name} is not in the cache, and {host} can't be reached ({error}).\n"
            f"Connect to a network once, or {advice}."
        ) from None
