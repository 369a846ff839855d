"""Asks the SuperLink whether it knows this site's node key, without changing anything there.

The call is Flower's ``ActivateNode``, signed as the SuperNode signs, with a heartbeat interval that Flower refuses. It
looks the key up first: an unknown key is told as such, and for a known one it refuses the interval before it touches
the node. A SuperNode that is running does not notice.
"""

from typing import Literal

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared_models.checkup import NotChecked, Wrong

NO_INTERVAL = 0.0
INVALID_INTERVAL = (400, 2003)  # Flower: FLEET_INVALID_HEARTBEAT_INTERVAL
NOT_ACTIVATED = (412, 2004)  # Flower: FLEET_NODE_ACTIVATION_FAILED

Verdict = Literal["known", "unknown", "not authenticated"]


def ask_for_node(client: httpx.Client, node_key: bytes) -> Verdict:
    """Ask whether the server knows the key.

    Args:
        client: whose base URL is the gate.
        node_key: the private key's OpenSSH file.

    Raises:
        NotChecked: the SuperLink does not answer at present.
        Wrong: it answers in a way that this version does not know, or the connection broke.
    """
    from flwr.proto.fleet_pb2 import ActivateNodeRequest
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supercore.protobuf.client import ProtobufRequestContext
    from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    private = serialization.load_ssh_private_key(node_key, None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise NotChecked("the node key is not an elliptic-curve key")
    message = ActivateNodeRequest(
        public_key=public_key_to_bytes(private.public_key()), heartbeat_interval=NO_INTERVAL
    )
    request = client.build_request(
        "POST",
        "/v1/fleet/activate-node",
        content=message.SerializeToString(),
        headers={"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE},
    )
    context = ProtobufRequestContext("/flwr.proto.Fleet/ActivateNode", message, request)
    signer = NodeAuthHttpInterceptor(private, private.public_key())
    try:
        return _verdict(signer.intercept(context, lambda signed: client.send(signed.request)))
    except httpx.HTTPError as error:
        raise Wrong(
            f"the connection broke while the server was asked ({type(error).__name__}); try again"
        ) from error


def _verdict(reply: httpx.Response) -> Verdict:
    if reply.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        raise NotChecked(
            "the gate answers, but Flower's SuperLink behind it does not yet; try again in a minute"
        )
    if reply.status_code == httpx.codes.UNAUTHORIZED:
        return "not authenticated"
    told = (reply.status_code, _code(reply))
    if told == INVALID_INTERVAL:
        return "known"
    if told == NOT_ACTIVATED:
        return "unknown"
    raise Wrong(f"the server gives an answer that this version of Collegium does not know (HTTP {told[0]})")


def _code(reply: httpx.Response) -> int | None:
    try:
        return int(reply.json()["code"])
    except (ValueError, TypeError, KeyError):
        return None
