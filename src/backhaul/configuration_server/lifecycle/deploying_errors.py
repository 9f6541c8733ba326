"""Why a process server is not deployed, deleted or switched to. Raised where jobs are asked for; shown as they are."""

from __future__ import annotations

from backhaul.configuration_server.errors import ConfigurationServerError


class DeploymentError(ConfigurationServerError):
    """The deployment of process server {name} failed: {reason}."""

    code = "BH-DEPLOYMENT"
    fix = "See the reason; the same command again goes on where it stopped."
    status = 409


class DeploymentRefused(DeploymentError):
    """{action} process server {name} is refused: {reason}."""

    code = "BH-DEPLOYMENT-REFUSED"
    fix = "{what_to_do}"


class DeploymentExists(DeploymentError):
    """Process server {name} is deployed already, by a form that differs in {reason}."""

    code = "BH-DEPLOYMENT-EXISTS"
    fix = "Give the same form again to go on with it, delete it first, or choose another name."


class SwitchNetwork(DeploymentError):
    """Item {item} is not switched to {name}: that serves network {serves}, and the machine is in {network}."""

    code = "BH-SWITCH-NETWORK"
    fix = "Choose a process server of the machine's network; `backhaul process-server list` shows them."


class SwitchUnhealthy(DeploymentError):
    """Item {item} is not switched to {name}: its health is {health}."""

    code = "BH-SWITCH-UNHEALTHY"
    fix = "`backhaul doctor` names what is broken; choose a healthy one meanwhile."


class BootDataWrong(ConfigurationServerError):
    """What the site hands this server at its boot cannot be used: {reason}."""

    code = "BH-BOOT-DATA"
    fix = "This verb is for servers that `backhaul process-server deploy` made; elsewhere use `register` and `run`."


class AdministratorWrong(ConfigurationServerError):
    """That is not the administrator of server {name}."""

    code = "BH-ADMINISTRATOR"
    fix = "Give the user name and password that the server was deployed with."
