"""``collegium-client agent``: the agent alone, as the user who has the data; another user connects to the server."""

import stat
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.door_place import door_place
from client.membership import check_node_key, read_joined
from client.site_file import SiteFile, read_site
from shared_models.configuration import ConfigurationError
from shared_models.passphrase import asked_passphrase
from shared_models.processes import follow_parent, signals_end

INTERRUPTED = 130
PARENT_SECONDS = 40.0

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def agent(
    config: Annotated[Path, typer.Option("--config", help="The site's file.", dir_okay=False)] = Path(
        "site.toml"
    ),
    end_with_parent: Annotated[
        bool, typer.Option("--end-with-parent", hidden=True, help="End when standard input is closed.")
    ] = False,
) -> None:
    """Run the agent alone, as the user who has the data, until Ctrl-C or SIGTERM. It needs no network."""
    from client.launch import run_agent

    if end_with_parent:
        follow_parent(PARENT_SECONDS)
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
    try:
        with signals_end():
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
    except KeyboardInterrupt:
        err.print("Stopped.")
        raise typer.Exit(INTERRUPTED) from None


def exposed(site: SiteFile) -> list[str]:
    """One line for each of images and labels that every user of this machine, the network user too, may read."""
    return [
        f"{key}: every user of this machine may read {path}, the network user too; take that right away with: "
        f"chmod o= {path}"
        for key, path in (("images.folder", site.images.folder), ("labels.file", site.labels.file))
        if _open_to_others(path)
    ]


def _open_to_others(path: Path) -> bool:
    """By the mode bits for others alone; groups and access-control lists are not looked at."""
    real = path.resolve()
    try:
        modes = [above.stat().st_mode for above in (real, *real.parents)]
    except OSError:
        return False  # the agent itself will say that it cannot be read
    bits = stat.S_IXOTH if stat.S_ISDIR(modes[0]) else stat.S_IROTH
    return bool(modes[0] & bits) and all(mode & stat.S_IXOTH for mode in modes[1:])
