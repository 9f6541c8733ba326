"""What can go wrong at a site.

    BackhaulError
    └── SiteError
        ├── NotAllowed   Unauthenticated   TokenReused   RequestMalformed   SiteUnreachable
        ├── SiteNotFound   InUse   ...
        └── ServerFieldWrong   and its children: one field of the deployment form each (findings)

Raised by a provider, sent as code and parameters, and raised again with the same class at the caller (`client.py`).
"""

from __future__ import annotations

from backhaul.replication.errors import BackhaulError


class SiteError(BackhaulError):
    """The site could not do {operation}: {reason}."""

    code = "BH-SITE"
    fix = "See the reason; the site's own log names the call."
    status = 409


class SiteUnreachable(SiteError):
    """The site's management API at {address} does not answer: {reason}."""

    code = "BH-SITE-UNREACHABLE"
    fix = "Start the site's provider (`backhaul site run`) or mend the way to it, then repeat; repeating is safe."
    status = 503


class Unauthenticated(SiteError):
    """The site does not know this caller."""

    code = "BH-SITE-UNAUTHENTICATED"
    fix = "Give the access token that the site issued for this principal."
    status = 401


class NotAllowed(SiteError):
    """Principal {principal} may not {operation} in subscription {subscription}: it needs {needed} and has {role}."""

    code = "BH-SITE-NOT-ALLOWED"
    fix = "Have the subscription's owner grant the role, or use another principal."
    status = 403


class RequestMalformed(SiteError):
    """The request {operation} is not well formed: {reason}."""

    code = "BH-SITE-REQUEST-MALFORMED"
    fix = "Compare the versions of the caller and the site."
    status = 400


class TokenReused(SiteError):
    """The request token {token} was used before for another request."""

    code = "BH-SITE-TOKEN-REUSED"
    fix = "Use a new token for each new wish, and the old one only to repeat the old request."


class SiteNotFound(SiteError):
    """The site has no {what} named {name}."""

    code = "BH-SITE-NOT-FOUND"
    fix = "List what there is; names are case-sensitive."
    status = 404


class InUse(SiteError):
    """{what} is in use: {reason}."""

    code = "BH-SITE-IN-USE"
    fix = "Free it first, then repeat."


class DiskSizeWrong(SiteError):
    """A size of {size} bytes is not possible for disk {disk}: {reason}."""

    code = "BH-SITE-DISK-SIZE"
    fix = "Choose a multiple of 4096 bytes within the limits; a disk never shrinks."


class NameTaken(SiteError):
    """There is already a {what} named {name}."""

    code = "BH-SITE-NAME-TAKEN"
    fix = "Choose another name or delete the other one first."


class AddressTaken(SiteError):
    """Address {address} in network {network} is taken: {reason}."""

    code = "BH-SITE-ADDRESS-TAKEN"
    fix = "Choose another address, or stop what uses it, then repeat."


class AddressesExhausted(SiteError):
    """Subnet {subnet} of network {network} has no free address."""

    code = "BH-SITE-ADDRESSES-EXHAUSTED"
    fix = "Release an address or choose another subnet."


class PowerNotConfirmed(SiteError):
    """{machine} was told to stop but is not confirmed to be off: {reason}."""

    code = "BH-SITE-POWER-NOT-CONFIRMED"
    fix = "Try again; do not start its other side until it is confirmed off."


class StartFailed(SiteError):
    """{what} could not be started: {reason}."""

    code = "BH-SITE-START-FAILED"
    fix = "See the reason and the console, mend it, then repeat."


class NeedsRoot(SiteError):
    """{what} needs a site that runs as root: {reason}."""

    code = "BH-SITE-NEEDS-ROOT"
    fix = "Run the site's provider as root, or do without."


class RouteNotControllable(SiteError):
    """The route of network {network} cannot be changed: {reason}."""

    code = "BH-SITE-ROUTE-NOT-CONTROLLABLE"
    fix = "Run the local site as root, where networks are namespaces with a router, or change the real router."


class TooManyAttempts(SiteError):
    """Too many wrong administrator passwords for server {server}."""

    code = "BH-SITE-TOO-MANY-ATTEMPTS"
    fix = "Wait {wait_s} seconds, then give the user name and password of the deployment."
    status = 429


class HostToolFailed(SiteError):
    """`{command}` failed on the site's host: {reason}."""

    code = "BH-SITE-HOST-TOOL"
    fix = "See the reason; install the tool if it is missing, then repeat."
    status = 500


class SiteFolderTaken(SiteError):
    """Another provider already serves the site folder {folder}."""

    code = "BH-SITE-FOLDER-TAKEN"
    fix = "Stop the other one, or use it."


class SiteDefinitionWrong(SiteError):
    """The definition of the site is not usable: {reason}."""

    code = "BH-SITE-DEFINITION"
    fix = "Mend the definition file and start the provider again."


class ServerFieldWrong(SiteError):
    """A field of the server's form is wrong."""

    code = "BH-SERVER-FIELD"
    fix = "Correct the field."
    status = 422


class ServerRejected(ServerFieldWrong):
    """The server {name} cannot be created: {findings}."""

    code = "BH-SERVER-REJECTED"
    fix = "Correct the fields named, then repeat."


class ServerNameWrong(ServerFieldWrong):
    """The server name {name} is not possible: {reason}."""

    code = "BH-SERVER-NAME"
    fix = "Use 1 to 64 letters, digits and hyphens, beginning and ending with a letter or digit, not digits alone."


class ServerNameTaken(ServerFieldWrong):
    """There is already a server or machine named {name}."""

    code = "BH-SERVER-NAME-TAKEN"
    fix = "Choose another name, or delete the other one first."


class UserNameWrong(ServerFieldWrong):
    """The user name {user} is not possible: {reason}."""

    code = "BH-SERVER-USER"
    fix = "Use 1 to 64 letters, digits, `_` and `-`, beginning with a letter or `_`; not a name everybody tries first."


class PasswordWrong(ServerFieldWrong):
    """The password is not possible: {reason}."""

    code = "BH-SERVER-PASSWORD"
    fix = "Use 12 to 72 characters, three of: lower case, upper case, digit, other; not one everybody tries first."


class SubscriptionUnknown(ServerFieldWrong):
    """There is no subscription {subscription}, or the caller may not see it."""

    code = "BH-SERVER-SUBSCRIPTION"
    fix = "Choose the subscription of the failed-over machines."


class ServerNotAllowed(ServerFieldWrong):
    """Principal {principal} may not create servers in subscription {subscription}."""

    code = "BH-SERVER-NOT-ALLOWED"
    fix = "Have the subscription's owner grant the role contributor."


class ResourceGroupUnknown(ServerFieldWrong):
    """Subscription {subscription} has no resource group {resource_group}."""

    code = "BH-SERVER-RESOURCE-GROUP"
    fix = "Choose an existing one or have it made."


class RegionWrong(ServerFieldWrong):
    """The region {region} is not that of {what}, which is {actual}."""

    code = "BH-SERVER-REGION"
    fix = "Choose the region of the virtual network."


class NetworkUnknown(ServerFieldWrong):
    """Subscription {subscription} has no virtual network {network}."""

    code = "BH-SERVER-NETWORK"
    fix = "Choose the network of the failed-over machines."


class SubnetUnknown(ServerFieldWrong):
    """Virtual network {network} has no subnet {subnet}."""

    code = "BH-SERVER-SUBNET"
    fix = "Choose a subnet of the network."


class AddressWrong(ServerFieldWrong):
    """Address {address} is not possible in subnet {subnet}: {reason}."""

    code = "BH-SERVER-ADDRESS"
    fix = "Choose a free address of the subnet, or leave the field empty for the next free one."


class AccountUnknown(ServerFieldWrong):
    """Subscription {subscription} has no storage account {account}."""

    code = "BH-SERVER-ACCOUNT"
    fix = "Choose a storage account of the subscription."


class AccountFull(ServerFieldWrong):
    """Storage account {account} has {free} bytes free, {needed} are needed."""

    code = "BH-SERVER-ACCOUNT-FULL"
    fix = "Free space in the account, enlarge it, or choose another."


class SizeUnknown(ServerFieldWrong):
    """The site has no server size {size}."""

    code = "BH-SERVER-SIZE"
    fix = "Choose one of the sizes that the site lists."


class SpoolSizeWrong(ServerFieldWrong):
    """A spool disk of {size} bytes is not possible."""

    code = "BH-SERVER-SPOOL-SIZE"
    fix = "Give at least 4 MiB, a multiple of 4096, or leave the field empty."


class QuotaExceeded(ServerFieldWrong):
    """Subscription {subscription} allows {limit} {what}, {used} are used, {needed} more are needed."""

    code = "BH-SERVER-QUOTA"
    fix = "Delete a server, choose a smaller size, or have the quota raised."


class CommandMissing(ServerFieldWrong):
    """{what} has no command to start."""

    code = "BH-SERVER-COMMAND"
    fix = "This is a defect of the caller: report it."
