"""What a deployed server of a cloud in namespaces boots: as the cloud's user, at its own address, on its own disks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

import backhaul
from backhaul.configuration_server.lifecycle.deploying_forms import BOOT
from backhaul.configuration_server.service_config import ServiceConfig
from backhaul.configuration_server.service_deployed import Administrator, BootData
from backhaul.process_server.unregistered import read_key_hash
from backhaul.sites.local.definition import SiteKind
from sites.root_world import CLOUD_NET, CLOUD_UID, remember_session, root_definition
from sites.site_world import PASSWORD, PASSWORD_HASH, await_console, running_site, server_request

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, users and mounts"),
]
DATA = BootData(
    id="ps-vnet-00112233", name="ps-vnet", network=CLOUD_NET, port=9443, configuration_server="cs.example.com:443",
    direct=False, administrator=Administrator("rescue", PASSWORD_HASH),
)  # fmt: skip


def test_it_boots_as_the_clouds_user_on_its_own_disks(tmp_path: Path) -> None:
    remember_session(tmp_path)
    package = str(Path(backhaul.__file__).parent.parent)
    site = root_definition(SiteKind.CLOUD)
    site = msgspec.structs.replace(site, readable=(sys.prefix, sys.base_prefix, package))
    with running_site(tmp_path / "cloud", site) as cloud:
        boot = msgspec.json.encode(DATA).decode()
        request = server_request(name="ps-vnet", command=BOOT, custom_data=boot)
        server = cloud("create_server", "t1", request=request)
        key = read_key_hash(await_console(cloud, "server:ps-vnet", "next: backhaul process-server register"))
        folder = cloud.provider.world.volume / "accounts" / "acc" / "servers" / server["id"]
        assert os.path.ismount(folder / "os")
        data = folder / "os" / "process-server"
        assert (data / "deployed.json").stat().st_uid == CLOUD_UID
        assert PASSWORD.encode() not in (data / "deployed.json").read_bytes()
        config = msgspec.json.decode((data / "service.json").read_bytes(), type=ServiceConfig)
        assert (config.name, config.host, config.port, config.network) == (DATA.id, server["address"], 9443, CLOUD_NET)
        assert (data / "relay").resolve() == folder / "spool" / "relay"
        # Its key outlives a restart, or home would refuse to speak to it.
        cloud("stop_server", "t2", server="ps-vnet")
        cloud("start_server", "t3", server="ps-vnet")
        again = await_console(cloud, "server:ps-vnet", "next: backhaul process-server register")
        assert key is not None
        assert read_key_hash(again) == key
        cloud("delete_server", "t4", server="ps-vnet")
