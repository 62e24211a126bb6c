"""Whether a network is there, found out before a library retries for minutes."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from vit.foundation import UserError

SECONDS_TO_CONNECT = 1.0


def _way_to(address: str) -> str:
    """The URL that is connected to first: the proxy's, where one is set for the address, or the address itself."""
    proxies = getproxies()
    proxy = proxies.get("https") or proxies.get("all")
    if not proxy or proxy_bypass(urlsplit(address).hostname or ""):
        return address
    return proxy if "://" in proxy else f"http://{proxy}"


def refuse_without_network(name: str, address: str, advice: str, *, offline: str = "") -> None:
    """Raises UserError, within two seconds, when `address` can't be reached, directly or by the proxy that is set.

    Args:
        name: what is wanted from there.
        address: a URL.
        advice: what else to do.
        offline: why no connection may be tried, where that is so.
    """
    place = urlsplit(_way_to(address))
    host, port = place.hostname or address, place.port or {"http": 80}.get(place.scheme, 443)
    try:
        if offline:
            raise OSError(offline)
        socket.create_connection((host, port), timeout=SECONDS_TO_CONNECT).close()
    except OSError as error:
        raise UserError(
            f"{name} is not in the cache, and {host} can't be reached ({error}).\n"
            f"Connect to a network once, or {advice}."
        ) from None
