"""Everything of Flower's inner workings that we stand on, as it is in the pinned version.

A failure here means that Flower changed. Read what changed in it, mend the module named in the test, and only
then adapt the table.
"""

import importlib
import inspect
import io
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from client.doctor_server import AHEAD_SECONDS, BEHIND_SECONDS
from client.launch import NOT_ADMITTED
from client.node_probe import INVALID_INTERVAL, NO_INTERVAL, NOT_ACTIVATED
from client.supernode import ShortSleep, _OfOneRun
from server.gate import HEADERS_IN, PASSED
from server.superlink import bundle
from shared_models.processes import FLOWER_QUIET

SIGNATURES = {
    # client/forwarder.py and server/flower_exchange.py
    "flwr.common.serde:message_to_proto": "(message)",
    "flwr.common.serde:run_from_proto": "(run_proto)",
    "flwr.app.message:remove_content_from_message": "(message)",
    "flwr.app:Message.__init__": "(self, *args, dst_node_id, message_type, content, error, ttl, group_id, dst_task_id, "
    "reply_to, metadata)",
    "flwr.supercore.inflatable.inflatable_object:get_all_nested_objects": "(obj)",
    "flwr.supercore.inflatable.inflatable_object:get_object_tree": "(obj)",
    "flwr.supercore.inflatable.inflatable_object:iterate_object_tree": "(tree)",
    "flwr.supercore.inflatable.inflatable_object:no_object_id_recompute": "()",
    "flwr.supercore.inflatable.inflatable_object:get_object_body": "(object_content, cls)",
    "flwr.supercore.inflatable.inflatable_object:get_object_head_values_from_object_content": "(object_content)",
    "flwr.supercore.inflatable.inflatable_utils:inflate_object_from_contents": "(object_id, object_contents, *, "
    "keep_object_contents, objects)",
    "flwr.supercore.protobuf.client:ProtobufClient.from_server_address": "(server_address, insecure, "
    "root_certificates, interceptors, *, retry_invoker)",
    "flwr.supercore.interceptors:RuntimeTokenHttpInterceptor.__init__": "(self, token)",
    "flwr.supercore.interceptors:RuntimeVersionHttpInterceptor.__init__": "(self, component_name)",
    "flwr.supercore.interceptors:SuperExecAuthHttpInterceptor.__init__": "(self, *, master_secret, protected_methods)",
    # client/node_probe.py
    "flwr.supernode.node_auth_http_interceptor:NodeAuthHttpInterceptor.__init__": "(self, private_key, public_key)",
    "flwr.supernode.node_auth_http_interceptor:NodeAuthHttpInterceptor.intercept": "(self, context, call_next)",
    "flwr.supercore.protobuf.client:ProtobufRequestContext": "(rpc_method, message, request)",
    "flwr.supercore.primitives.asymmetric:public_key_to_bytes": "(public_key)",
    # client/supernode.py
    "flwr.supernode.cli:flower_supernode": "()",
    "flwr.supercore.inflatable.inflatable_utils:pull_objects": "(object_ids, pull_object_fn, *, "
    "max_concurrent_pulls, max_time, max_tries_per_object, initial_backoff, backoff_cap)",
    # server/superlink.py
    "flwr.superlink.cli:flower_superlink": "()",
    "flwr.superlink.config_loader:load_control_authn_plugin": "()",
    "flwr.superlink.auth_plugin:NoOpControlAuthnPlugin.validate_tokens_in_metadata": "(self, metadata)",
    "flwr.common.config:get_fab_config": "(fab_file)",
    # server/server_app.py
    "flwr.superlink.grid:HttpGrid.__init__": "(self, runtime_api_address, insecure, root_certificates, *, token)",
    "flwr.superlink.grid:HttpGrid.push_messages": "(self, messages)",
    "flwr.superlink.grid:HttpGrid.get_nodes": "(self)",
    "flwr.superlink.grid:HttpGrid.set_run": "(self, run)",
    "flwr.superlink.grid:HttpGrid.close": "(self)",
}
CLIENTS = {
    "flwr.supercore.runtime:RuntimeHttpClient": (
        *("AcquireTask", "SendTaskHeartbeat", "PullTaskInput", "PushTaskOutput", "PushObject", "PullObject"),
        *("ConfirmMessageReceived", "PushMessages", "PullMessages", "GetNodes"),
    ),
    "flwr.supercore.control.control_http_client:ControlHttpClient": (
        *("StartRun", "ListNodes", "RegisterNode", "UnregisterNode"),
    ),
}
FIELDS = {
    "runtime_pb2:AcquireTaskRequest": {"supported_task_types"},
    "runtime_pb2:AcquireTaskResponse": {"task", "token"},
    "runtime_pb2:PullTaskInputResponse": {"context", "run", "task_id"},
    "runtime_pb2:PushTaskOutputRequest": {"sub_status", "details"},
    "runtime_pb2:PullAppMessagesRequest": {"message_ids"},
    "runtime_pb2:PullAppMessagesResponse": {"messages_list", "message_object_trees"},
    "runtime_pb2:PushAppMessagesRequest": {"messages_list", "message_object_trees"},
    "runtime_pb2:PushAppMessagesResponse": {"objects_to_push", "session_id"},
    "fleet_pb2:ActivateNodeRequest": {"public_key", "heartbeat_interval"},
    "message_pb2:PullObjectRequest": {"node", "run_id", "object_id"},
    "message_pb2:PullObjectResponse": {"object_found", "object_available", "object_content"},
    "message_pb2:PushObjectRequest": {"node", "run_id", "object_id", "object_content", "session_id"},
    "message_pb2:ConfirmMessageReceivedRequest": {"node", "run_id", "message_object_id"},
    "message_pb2:Metadata": {"message_id", "reply_to_message_id", "ttl", "created_at"},
    "node_pb2:NodeInfo": {"node_id", "public_key", "status"},
    "control_pb2:StartRunRequest": {"fab"},
    "control_pb2:StartRunResponse": {"run_id"},
    "control_pb2:ListNodesResponse": {"nodes_info"},
    "control_pb2:RegisterNodeRequest": {"public_key"},
    "control_pb2:UnregisterNodeRequest": {"node_id"},
}


def _found(name: str) -> object:
    module, _, path = name.partition(":")
    found: object = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_a_function_that_we_call_or_replace_takes_what_it_took(name: str) -> None:
    parameters = inspect.signature(_found(name)).parameters.values()
    nothing = inspect.Parameter.empty
    bare = inspect.Signature([each.replace(annotation=nothing, default=nothing) for each in parameters])
    assert str(bare) == SIGNATURES[name]


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_the_clients_have_the_calls_that_we_make(name: str) -> None:
    client = _found(name)
    for call in CLIENTS[name]:
        assert list(inspect.signature(getattr(client, call)).parameters) == ["self", "request"]


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_the_messages_have_the_fields_that_we_use(name: str) -> None:
    message = _found(f"flwr.proto.{name}")
    assert FIELDS[name] <= set(message.DESCRIPTOR.fields_by_name)  # type: ignore[attr-defined]


def test_the_supernode_waits_where_we_shorten_it() -> None:
    from flwr.supernode import start_client_internal as _  # noqa: F401

    source = inspect.getsource(sys.modules["flwr.supernode.start_client_internal"])
    assert re.findall(r"\btime\.\w+", source) == ["time.sleep"] * 3
    assert source.count("time.sleep(3)") == 1
    assert source.count("time.sleep(0.5)") == 2


def test_the_supernode_pulls_one_message_and_then_sends_replies_as_we_wrap_it() -> None:
    from flwr.supernode import start_client_internal as _  # noqa: F401

    loop = sys.modules["flwr.supernode.start_client_internal"]
    source = inspect.getsource(loop)
    assert len(re.findall(r"^def _pull_and_store_message\(", source, flags=re.MULTILINE)) == 1
    assert len(re.findall(r"run_id = _pull_and_store_message\(\n\s+state=state,", source)) == 1
    assert len(re.findall(r"\b_push_messages\(\n\s+state=state,", source)) == 1
    assert source.count("state.get_messages_legacy(is_reply=True)") == 1


def test_a_reply_to_a_run_that_is_over_is_not_taken_for_the_next_runs() -> None:
    """The agent answered a message that the SuperNode had given up because its run ended."""
    from flwr.app import Message, RecordDict
    from flwr.app.message.message import make_message
    from flwr.app.metadata import Metadata
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supernode.nodestate import NodeStateFactory

    state = NodeStateFactory(ObjectStoreFactory()).state()

    def reply(run_id: int, number: str) -> Message:
        metadata = Metadata(
            run_id=run_id,
            message_id=number,
            src_node_id=1,
            dst_node_id=2,
            reply_to_message_id=f"to-{number}",
            group_id="",
            created_at=time.time(),
            ttl=60.0,
            message_type="query",
        )
        return make_message(metadata=metadata, content=RecordDict())

    for message in (reply(1, "old"), reply(2, "new")):
        state.store_message(message)
    handed_out = _OfOneRun(state, 2).get_messages_legacy(is_reply=True)
    assert [message.metadata.message_id for message in handed_out] == ["new"]
    assert not _OfOneRun(state, 1).get_messages_legacy(is_reply=True)


def test_looking_for_messages_is_quick_after_work_and_slower_when_idle() -> None:
    slept: list[float] = []
    short = ShortSleep(slept.append)
    for _ in range(100):
        short.sleep(3)
    assert slept[0] == 0.1
    assert slept == sorted(slept)
    assert slept[-1] == 1.0
    short.sleep(0.5)
    short.sleep(3)
    assert slept[-2:] == [0.05, 0.1]


def test_flower_reads_our_bundle_and_finds_no_python_in_it() -> None:
    from flwr.common.config import get_fab_config, get_metadata_from_config

    assert get_metadata_from_config(get_fab_config(bundle())) == ("collegium/collegium", "1.0.0")
    assert zipfile.ZipFile(io.BytesIO(bundle())).namelist() == ["pyproject.toml", ".info/CONTENT"]


def test_the_superlink_asks_our_login_check() -> None:
    from flwr.superlink.cli import flower_superlink as _  # noqa: F401

    module = sys.modules["flwr.superlink.cli.flower_superlink"]
    assert "load_control_authn_plugin()" in inspect.getsource(module._parse_superlink_lifespan_config)
    assert "if args.isolation == ISOLATION_MODE_SUBPROCESS:" in inspect.getsource(
        module._parse_superlink_lifespan_config
    )


def test_the_grid_has_the_parts_that_we_reach_into() -> None:
    from flwr.superlink.grid import HttpGrid

    grid = HttpGrid("127.0.0.1:1", insecure=True, token="t")
    assert {"max_time", "max_tries"} <= set(vars(grid._retry_invoker))
    assert grid.node.node_id == 1
    assert isinstance(HttpGrid._runtime_client, property)


def test_the_gate_passes_every_fleet_call_but_registering() -> None:
    from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

    paths = {path for _, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet")}
    refused = {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert {path.decode() for path in PASSED} == paths - refused


def test_the_gate_hands_on_the_headers_of_the_node_authentication() -> None:
    from flwr.common.constant import TIMESTAMP_HEADER
    from flwr.supercore import constant

    wanted = {
        TIMESTAMP_HEADER,
        constant.FLEET_HTTP_PUBLIC_KEY_HEADER,
        constant.FLEET_HTTP_SIGNATURE_HEADER,
        constant.FLWR_PACKAGE_NAME_METADATA_KEY,
        constant.FLWR_PACKAGE_VERSION_METADATA_KEY,
        constant.FLWR_COMPONENT_NAME_METADATA_KEY,
    }
    assert {name.encode() for name in wanted} <= HEADERS_IN


def test_a_key_that_is_not_registered_is_told_by_the_code_that_we_look_for() -> None:
    from flwr.supercore.error import ApiErrorCode

    assert f"[code: {int(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED)}]" == NOT_ADMITTED


def test_asking_for_a_node_key_ends_before_the_node_is_touched() -> None:
    from flwr.common.constant import HEARTBEAT_MIN_INTERVAL
    from flwr.supercore.error import ApiErrorCode
    from flwr.supercore.error.catalog import API_ERROR_MAP
    from flwr.superlink.servicer.fleet import fleet_handlers

    source = inspect.getsource(fleet_handlers.activate_node)
    steps = ["state.get_node_id_by_public_key(", "_validate_heartbeat_interval(", "state.activate_node("]
    assert re.findall(r"state\.\w+\(|_validate_heartbeat_interval\(", source) == steps
    assert NO_INTERVAL < HEARTBEAT_MIN_INTERVAL
    for code, told in (
        (ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL, INVALID_INTERVAL),
        (ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED, NOT_ACTIVATED),
    ):
        assert (API_ERROR_MAP[code].http_status_code, int(code)) == told


def test_the_doctor_judges_the_clock_by_flowers_own_limits() -> None:
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

    assert AHEAD_SECONDS == SYSTEM_TIME_TOLERANCE
    assert BEHIND_SECONDS == TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE


def test_the_supernode_takes_its_proxy_from_the_environment() -> None:
    from flwr.supercore.protobuf.client import ProtobufClient

    source = inspect.getsource(ProtobufClient.__init__)
    assert "httpx.Client(" in source
    assert not {"trust_env", "proxy", "transport", "mounts"} & set(re.findall(r"(\w+)=", source))


PROGRAM = """
import sys, time
def watch(name, arguments):
    if name in ("socket.getaddrinfo", "socket.connect"):
        print("network", flush=True)
        raise OSError("not from a test")
sys.addaudithook(watch)
from flwr.supercore.telemetry import EventType, event
from flwr.supercore.update_check import warn_if_flwr_update_available
event(EventType.RUN_SUPERNODE_ENTER).exception()
warn_if_flwr_update_available("x")
time.sleep(1)
"""


@pytest.mark.slow
def test_our_variables_switch_telemetry_and_update_check_off(tmp_path: Path) -> None:
    shown = {}
    for name, variables in {"quiet": FLOWER_QUIET, "as shipped": {}}.items():
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**variables, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        shown[name] = done.stdout.split()
    assert shown["quiet"] == []
    assert "network" in shown["as shipped"]  # so this test can fail
