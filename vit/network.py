"""Checks whether there is a network, before a library retries for minutes."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from vit.foundation import UserError

SECONDS_TO_CONNECT = 1.0


def _way_to(address: str) -> str:
    """The URL to connect to: that of the proxy, if one is set for the address, or the address itself."""
    proxies = getproxies()
    proxy = proxies.get("https") or proxies.get("all")
    if not proxy or proxy_bypass(urlsplit(address).hostname or ""):
        return address
    return proxy if "://" in proxy else f"http://{proxy}"


def refuse_without_network(name: str, address: str, advice: str, *, offline: str = "") -> None:
    """Raises UserError, within two seconds, if `address` can't be reached, directly or through the proxy that is set.

    Args:
        name: what is to be downloaded from there.
        address: a URL.
        advice: what else the user can do.
        offline: the reason why no connection may be tried, if there is one.
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
