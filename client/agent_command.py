"""``collegium-client agent``: the agent alone, as the user who has the data; another user connects to the server."""

from rich.console import Console

from client.door_place import door_place
from client.exposure import exposed
from client.foreground import foreground
from client.membership import check_node_key, read_joined
from client.options import SITE_FILE, ConfigOption, EndWithParentOption
from client.site_file import read_site
from shared_models.configuration import ConfigurationError
from shared_models.passphrase import asked_passphrase

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def agent(
    config: ConfigOption = SITE_FILE,
    end_with_parent: EndWithParentOption = False,
) -> None:
    """Run the agent alone, as the user who has the data, until Ctrl-C or SIGTERM. It needs no network."""
    from client.launch import run_agent

    with foreground(end_with_parent):
        site = read_site(config)
        if site.agent is None:
            raise ConfigurationError(
                f"{config}: [agent] is missing; add it with socket, network_user and node_public, or run everything as "
                "one user with: collegium-client start"
            )
        check_node_key(site, read_joined(site))
        door_place(site)
        for line in exposed(site):
            err.print(line, style="yellow", markup=False)
        out.print(
            f'The agent of "{site.name}" starts; its log is in {site.state / "logs"}. Ctrl-C ends it.',
            markup=False,
        )
        run_agent(
            site,
            config,
            tell=lambda line: out.print(line, markup=False),
            ended=lambda: False,
            passphrase=asked_passphrase(),
        )
