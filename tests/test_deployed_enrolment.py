"""Enrolment against a real SuperLink and gate: who is let in after the roster changed, and by which address."""

from pathlib import Path

import pytest
from toy_consortium import Consortium, make_server, make_site, needs_ipv6

from client.launch import check_server
from client.site_file import read_site
from server.server_file import read_sites
from server.superlink import SuperLink, SuperLinkError, registered_nodes
from shared_models.identity_keys import new_identity_key
from shared_models.node_keys import new_node_key
from shared_models.roster import RosterSite

pytestmark = [pytest.mark.deployed, pytest.mark.slow]


def test_a_revoked_node_key_is_unregistered_at_the_superlink_for_good(tmp_path: Path) -> None:
    file, _ = make_server(tmp_path / "server", ("north", "south"))
    roster = read_sites(file)
    north = roster.entry("north")
    assert north is not None
    superlink = SuperLink(file.state, log=tmp_path / "superlink.log")
    try:
        superlink.wait_until_ready()
        superlink.register(roster)
        assert set(registered_nodes(superlink.access).values()) == {site.node_key for site in roster.site}
        superlink.register(roster.without_site("north"))
        assert set(registered_nodes(superlink.access).values()) == {roster.site[1].node_key}
        with pytest.raises(SuperLinkError, match="stays withdrawn"):
            superlink.register(roster)  # which is why `admit` refuses such keys at once
        renewed = RosterSite(name="north", node_key=new_node_key()[1], identity_key=new_identity_key()[1])
        replaced = roster.with_keys_replaced(renewed)
        superlink.register(replaced)
        assert set(registered_nodes(superlink.access).values()) == {site.node_key for site in replaced.site}
    finally:
        superlink.child.stop()


@pytest.mark.thorough
@needs_ipv6
def test_sites_connect_by_ipv6_and_by_ipv4_to_a_server_that_listens_on_all_interfaces(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path / "c", ("north", "south"), host="::", reached={"north": "[::1]"})
    try:
        replies, _ = consortium.exchange({"north": b"hello", "south": b"hello"}, 30.0)
        assert sorted(site for site, _, _ in replies) == ["north", "south"]
    finally:
        consortium.close()


@needs_ipv6
def test_the_check_before_starting_reaches_an_ipv6_server_as_the_supernode_does(tmp_path: Path) -> None:
    file, keys = make_server(tmp_path / "server", ("north",), host="::1")
    site = read_site(make_site(tmp_path / "north", "north", file, keys["north"], reached="[::1]"))
    from server.launch import open_server

    assert site.server is not None
    with open_server(file, read_sites(file)):
        check_server(site.server)
