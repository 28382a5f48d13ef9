"""Places on the network: addresses, what the mount helpers' own words mean, and passwords, which nobody sees."""

import errno
import json
import socket
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import bootenv.run
from bootenv import network, volumes
from bootenv.errors import BackupNotFound, CommandFailed, NetworkPlaceFailed, OtherSet, PasswordWanted, ToolMissing
from bootenv.network import Card, NetworkPlace, is_url, mount, parse, parse_cards, url_of
from bootenv.sif import BackupReference, ProviderReference
from tests.test_sif import SET

SHARE = parse("smb://ann@nas/backups/servers")
EXPORT = parse("nfs://nas/export/backups")


# Addresses

@pytest.mark.parametrize(("url", "place"), [
    ("nfs://nas/export/backups", NetworkPlace("nfs", "nas", "/export/backups")),
    ("NFS://Nas:2050/export//backups/", NetworkPlace("nfs", "nas", "/export/backups", port=2050)),
    ("nfs://[2001:db8::1]/", NetworkPlace("nfs", "2001:db8::1", "/")),
    ("smb://nas/backups", NetworkPlace("smb", "nas", "/backups")),
    ("smb://ann@10.0.2.2:4450/backups/my servers", NetworkPlace("smb", "10.0.2.2", "/backups/my servers", "ann",
                                                                port=4450)),
    ("smb://OFFICE;ann%40example@nas/b%23/%3F%25", NetworkPlace("smb", "nas", "/b#/?%", "ann@example", "OFFICE")),
])
def test_an_address_is_a_place_and_a_place_is_an_address(url, place):
    assert is_url(url)
    assert parse(url) == place
    assert parse(place.url) == place


@pytest.mark.parametrize("url", [
    "nfs://nas", "smb://nas", "smb://nas/", "smb:///share", "nfs:///export", "nfs://-o/export", "nfs://nas/a/../b",
    "smb://a,uid=0@nas/share", "smb://nas/a?b", "nfs://nas/a#b", "nfs://nas:port/x", "nfs://nas:70000/x",
    "nfs://ann@nas/export", "smb://[::1/share", "nfs://nas/a\nb", "nfs://nas/%0Ab", "ftp://nas/x", "nfs://na s/x",
])
def test_what_is_no_address_is_refused_in_words(url):
    with pytest.raises(NetworkPlaceFailed, match="is no address of a network place"):
        parse(url)


@pytest.mark.parametrize("url", ["smb://ann:s3cret@nas/share", "smb://ann:s3cret@nas:x/share", "smb://ann:s3/cret@nas/s",
                                 "smb://ann:@nas/share", "nfs://ann:s3cret@[nas/x"])
def test_a_password_in_an_address_is_refused_and_not_repeated(url):
    with pytest.raises(NetworkPlaceFailed, match="a password in the address") as caught:
        parse(url)
    assert "s3" not in f"{caught.value} {caught.value.hint}"


def test_what_is_mounted_is_a_servers_folder():
    assert (EXPORT.source, EXPORT.folder) == ("nas:/export/backups", "")
    assert (SHARE.source, SHARE.folder) == ("//nas/backups", "servers")
    assert parse("nfs://[2001:db8::1]/x").source == "[2001:db8::1]:/x"
    assert parse("smb://nas/my files/x").name == "smb-nas-my-files"


@pytest.mark.parametrize(("source", "type", "options", "url"), [
    ("nas:/export", "nfs4", "rw,relatime,vers=4.2,proto=tcp,sec=sys,clientaddr=10.0.2.15", "nfs://nas/export/asr"),
    ("nas:/", "nfs4", "rw,vers=4.2,port=2050", "nfs://nas:2050/asr"),
    ("[2001:db8::1]:/export", "nfs", "rw,vers=3,mountport=20048", "nfs://[2001:db8::1]/export/asr"),
    ("nas:/export", "nfs4", "rw,sec=krb5p", ""),
    ("//nas/backups", "cifs", "rw,vers=3.1.1,username=ann,domain=OFFICE,uid=0", "smb://OFFICE;ann@nas/backups/asr"),
    ("//nas/backups/below", "cifs", "rw,sec=none,uid=0", "smb://nas/backups/below/asr"),
    ("//nas/backups", "cifs", "rw,sec=krb5,username=ann", ""),
    ("nas:/export", "fuse.sshfs", "rw", ""),
    ("/dev/sdb1", "nfs", "rw", ""),
])
def test_a_folder_of_what_is_mounted_has_its_servers_address(source, type, options, url):
    assert url_of({"source": source, "fstype": type, "options": options}, "/asr") == url


# Mounting

@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server that answers, and the helpers; a list of what was run, with its input and environment."""
    ran = []

    def run(argv, *, input=None, check=True, environment=None):
        ran.append((argv, input, environment))
        return ""

    monkeypatch.setattr(network, "run", run)
    monkeypatch.setattr(network, "has_tool", lambda name: True)
    monkeypatch.setattr(network, "ROOT", tmp_path)
    monkeypatch.setattr(network, "_MEDIUM", tmp_path / "medium")
    monkeypatch.setattr(network, "_FOUND", tmp_path / "found")
    monkeypatch.setattr(network, "ADDRESS", tmp_path / "address")
    monkeypatch.setattr(network, "_TRIED", tmp_path / "tried")
    monkeypatch.setattr(network, "_passwords", {})
    monkeypatch.setattr(network.socket, "create_connection", lambda address, timeout: socket.socket())
    return ran


def says(monkeypatch, words):
    def run(argv, **_):
        raise CommandFailed(f"timeout failed: {words}")
    monkeypatch.setattr(network, "run", run)


def test_an_export_is_mounted_softly_and_within_a_bounded_time(server, tmp_path):
    assert mount(EXPORT, tmp_path / "point") == tmp_path / "point"
    [(argv, input, environment)] = server
    assert argv == ("timeout", "--signal=KILL", "60", "mount", "-t", "nfs", "-o",
                    "ro,nosuid,nodev,soft,timeo=150,retrans=2,retry=0,nolock,vers=4.1", "nas:/export/backups",
                    str(tmp_path / "point"))
    assert (input, environment) == (b"", None)
    mount(replace(EXPORT, port=2050), tmp_path / "point", write=True)
    assert server[1][0][7] == "rw,nosuid,nodev,soft,timeo=300,retrans=2,retry=0,nolock,port=2050,vers=4.1"


@pytest.mark.parametrize(("first", "then", "means"), [
    ("mount.nfs: Protocol not supported", "", ""),
    ("mount.nfs: mounting nas:/x failed, reason given by server: No such file or directory",
     "mount.nfs: Connection timed out for nas:/x on /run/x", "has no export"),
    ("mount.nfs: Protocol not supported", "mount.nfs: access denied by server while mounting nas:/x", "that this comp"),
])
def test_a_server_without_nfs_4_1_is_mounted_by_what_it_has(first, then, means, server, monkeypatch, tmp_path):
    tried = []

    def run(argv, **_):
        tried.append(argv[7])
        if words := first if argv[7].endswith("vers=4.1") else then:
            raise CommandFailed(f"timeout failed: {words}")

    monkeypatch.setattr(network, "run", run)
    if means:
        with pytest.raises(NetworkPlaceFailed, match=means):
            mount(EXPORT, tmp_path / "point")
    else:
        mount(EXPORT, tmp_path / "point")
    assert [options.endswith(",nolock") for options in tried] == [False, True]


def test_a_guest_needs_no_password(server, tmp_path):
    (tmp_path / "point/servers").mkdir(parents=True)
    mount(parse("smb://nas:4450/backups/servers"), tmp_path / "point")
    assert server[0][0][7:] == ("ro,nosuid,nodev,guest,port=4450", "//nas/backups", str(tmp_path / "point"))


def test_a_password_is_given_on_standard_input_alone(server, tmp_path, monkeypatch):
    (tmp_path / "point/servers").mkdir(parents=True)
    with pytest.raises(PasswordWanted, match="nas wants the password of ann") as caught:
        mount(SHARE, tmp_path / "point")
    assert caught.value.place == SHARE
    assert server == []
    network.remember(SHARE, b"s3cret, \"with\" all")
    assert mount(replace(SHARE, domain="OFFICE"), tmp_path / "point") == tmp_path / "point/servers"
    [(argv, input, environment)] = server
    assert argv[7] == "ro,nosuid,nodev,username=ann,domain=OFFICE"
    assert (input, environment) == (b"s3cret, \"with\" all", {"PASSWD_FD": "0"})


def test_no_log_has_the_password(server, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "run", bootenv.run.run)
    monkeypatch.setattr(bootenv.run, "_to_its_end", lambda argv, *_: CompletedProcess(
        argv, 32, b"", b"mount error(13): Permission denied\n"))
    assert not network.opens(SHARE, b"s3cret")
    log = bootenv.run.LOG.read_text()
    assert "mount error(13)" in log
    assert "s3cret" not in log
    with pytest.raises(PasswordWanted):        # the wrong one is forgotten
        mount(SHARE, tmp_path / "point")


def test_a_folder_that_the_share_does_not_have_is_said_and_nothing_stays_mounted(server, tmp_path):
    network.remember(SHARE, b"x")
    with pytest.raises(NetworkPlaceFailed, match="There is no folder servers in //nas/backups"):
        mount(SHARE, tmp_path / "point")
    assert server[-1][0] == ("umount", str(tmp_path / "point"))


def test_a_file_is_mounted_by_its_folder_and_is_no_share(server, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "unmounting", lambda point, then: nullcontext())
    with network.file_at(parse("nfs://nas/export/backups/b.tar.zst")) as path:
        assert server[-1][0][-2:] == ("nas:/export/backups", str(path.parent))
        assert path.name == "b.tar.zst"
    path.parent.rmdir()
    with pytest.raises(NetworkPlaceFailed, match="names a share and no file in it"), \
            network.file_at(parse("smb://nas/backups")):
        pass


# What the helpers of nfs-utils 2.6 and 2.8 and of cifs-utils 7 say
@pytest.mark.parametrize(("place", "words", "means"), [
    (EXPORT, "mount.nfs: access denied by server while mounting nas:/export/backups", "or none that this computer may"),
    (EXPORT, "mount.nfs: mounting nas:/export/backups failed, reason given by server: No such file or directory",
     "nas has no export /export/backups"),
    (EXPORT, "mount.nfs: Protocol not supported", "no version of NFS"),
    (EXPORT, "mount.nfs: requested NFS version or transport protocol is not supported", "no version of NFS"),
    (EXPORT, "mount.nfs: Connection timed out for nas:/export/backups on /run/asr/volumes/x",
     "does not answer as a server of exports"),
    (EXPORT, "exit status 137", "does not answer as a server of exports"),
    (EXPORT, "mount.nfs: Operation not permitted", "nfs://nas/export/backups cannot be mounted: mount.nfs: Operation"),
    (SHARE, "mount error(2): No such file or directory Refer to the mount.cifs(8) manual page (e.g. man mount.cifs) "
            "and kernel log messages (dmesg)", "nas has no share backups"),
    (SHARE, "mount error(6): No such device or address", "nas has no share backups"),
    (SHARE, "mount error: Server abruptly closed the connection. This can happen if the server does not support the "
            "SMB version you are trying to use. The default SMB version recently changed from SMB1 to SMB2.1 and "
            "above. Try mounting with vers=1.0. mount error(112): Host is down", "no version of SMB"),
    (SHARE, "mount error(111): could not connect to 10.0.2.2Unable to find suitable address.", "does not answer"),
    (SHARE, "mount error(95): Operation not supported", "no version of SMB"),
    (SHARE, "mount error(126): Required key not available", "without Kerberos"),
    (SHARE, "mount error(113): could not connect to 10.0.2.2Unable to find suitable address.",
     "does not answer as a server of shares"),
    (SHARE, "mount error: cifs filesystem not supported by the system mount error(19): No such device",
     "no driver for shares"),
    (replace(SHARE, user=""), "mount error(13): Permission denied", "does not let guests into //nas/backups"),
])
def test_what_the_helpers_say_is_said_in_words(place, words, means, server, monkeypatch, tmp_path):
    network.remember(SHARE, b"x")
    says(monkeypatch, words)
    with pytest.raises(NetworkPlaceFailed) as caught:
        mount(place, tmp_path / "point")
    assert means in caught.value.message
    assert caught.value.hint
    assert not isinstance(caught.value, PasswordWanted)


@pytest.mark.parametrize("words", ["mount error(13): Permission denied", "mount error(127): Key has expired"])
def test_a_wrong_password_may_be_typed_again(words, server, monkeypatch, tmp_path):
    network.remember(SHARE, b"x")
    says(monkeypatch, words)
    with pytest.raises(PasswordWanted, match="does not let ann into //nas/backups") as caught:
        mount(SHARE, tmp_path / "point")
    assert caught.value.place == SHARE


@pytest.mark.parametrize(("error", "means"), [
    (socket.gaierror(-2, "Name or service not known"), "There is no server nas"),
    (ConnectionRefusedError(), "nothing answers at its port 2049"),
    (TimeoutError(), "The server nas does not answer"),
    (OSError(errno.ENETUNREACH, "Network is unreachable"), "The server nas does not answer"),
])
def test_a_server_that_is_not_there_is_not_waited_for(error, means, server, monkeypatch, tmp_path):
    def connect(address, timeout):
        assert timeout <= 10
        raise error

    monkeypatch.setattr(network.socket, "create_connection", connect)
    with pytest.raises(NetworkPlaceFailed, match=means):
        mount(EXPORT, tmp_path / "point")
    assert server == []


def test_a_missing_helper_is_named_with_its_package(server, monkeypatch, tmp_path):
    monkeypatch.setattr(network, "has_tool", lambda name: False)
    with pytest.raises(ToolMissing) as caught:
        mount(SHARE, tmp_path / "point")
    assert "mount.cifs" in caught.value.message
    assert "cifs-utils" in caught.value.hint


# The file of passwords

def credentials(root: Path, text: str, mode: int = 0o600) -> None:
    path = root / network.CREDENTIALS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def test_a_job_reads_the_password_from_a_file_that_is_roots_alone(server, tmp_path):
    with pytest.raises(PasswordWanted, match="A job cannot ask for the password of ann"):
        network.check_unattended(SHARE)
    credentials(tmp_path, "  username=ann\npassword= blank, and=all \ndomain=OFFICE\n")
    network.check_unattended(SHARE)
    assert not network.wants_password(SHARE)
    (tmp_path / "point/servers").mkdir(parents=True)
    mount(SHARE, tmp_path / "point")
    assert server[0][1] == b" blank, and=all "
    with pytest.raises(PasswordWanted):
        network.check_unattended(replace(SHARE, user="bob"))
    network.check_unattended(replace(SHARE, user=""))


def test_a_file_of_passwords_that_others_can_read_is_not_used(server, tmp_path):
    credentials(tmp_path, "username=ann\npassword=s3cret\n", 0o640)
    with pytest.raises(PasswordWanted, match="can be read by others than root") as caught:
        network.check_unattended(SHARE)
    assert caught.value.place is None
    assert "s3cret" not in caught.value.message


def test_a_file_of_passwords_in_another_encoding_is_said_and_not_used(server, tmp_path):
    credentials(tmp_path, "")
    (tmp_path / network.CREDENTIALS).write_bytes("username=ann\npassword=Käse\n".encode("latin-1"))
    with pytest.raises(PasswordWanted, match="is not text in UTF-8"):
        network.check_unattended(SHARE)


# The network of the recovery environment

def ip(*cards):
    """What ip(8) says of cards: name, link, addresses."""
    return json.dumps([{"ifname": "lo", "flags": ["LOOPBACK", "UP", "LOWER_UP"], "link_type": "loopback",
                        "addr_info": [{"family": "inet", "local": "127.0.0.1"}]}, *(
        {"ifname": name, "flags": ["BROADCAST", "UP", *(["LOWER_UP"] if link else ["NO-CARRIER"])],
         "link_type": "ether", "addr_info": [{"local": address} for address in addresses]}
        for name, link, addresses in cards)])


def test_cards_are_told_from_what_is_none_and_addresses_from_those_of_the_cable():
    assert parse_cards(ip(("eth0", True, ["10.0.2.15", "fe80::1", "169.254.3.4"]), ("eth1", False, []))) == (
        Card("eth0", True, ("10.0.2.15",)), Card("eth1", False))


@pytest.fixture
def recovery(server, monkeypatch, tmp_path):
    """A recovery environment, whose time passes quickly; what ip says, one answer after the other, and the commands."""
    answers, ran, clock = [], [], [0.0]

    def run(argv, **_):
        ran.append(argv)
        if argv[0] == "ip":
            return answers.pop(0) if len(answers) > 1 else answers[0]
        return ""

    (tmp_path / "medium").mkdir()
    (tmp_path / "found").touch()
    monkeypatch.setattr(network, "run", run)
    monkeypatch.setattr(network.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(network.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    return answers, ran, clock


def test_a_running_system_looks_after_its_network_itself(server):
    network.bring_up()
    assert server == []


def test_an_address_that_is_there_is_taken(recovery):
    answers, ran, _ = recovery
    answers.append(ip(("eth0", True, ["192.0.2.9"])))
    network.bring_up()
    assert {argv[0] for argv in ran} == {"ip"}


def test_a_console_that_is_quicker_than_the_hardware_waits_for_the_cards(recovery, tmp_path):
    answers, _, clock = recovery
    (tmp_path / "found").unlink()
    answers.append(ip(("eth0", True, ["10.0.2.15"])))
    network.bring_up()
    assert clock[0] >= 30


def test_dhcp_gives_an_address(recovery):
    answers, ran, _ = recovery
    down, linked = ip(("eth0", False, [])), ip(("eth0", True, ["2001:db8::9"]))
    answers += [down] * 4 + [linked] * 6 + [ip(("eth0", True, ["10.0.2.15"]))]
    network.bring_up()
    assert ("sh", "-c", "exec dhcpcd --background >>/run/asr/network.log 2>&1") in ran
    assert "10.0.2.15" in bootenv.run.LOG.read_text()


@pytest.mark.parametrize(("cards", "means", "seconds"), [
    ([], "no network card", 0),
    ([("eth0", False, []), ("eth1", False, [])], "No network card has a link: eth0, eth1", 15),
    ([("eth0", True, ["169.254.3.4"])], "No DHCP server has given this computer an address, on eth0", 60)])
def test_what_the_network_lacks_is_said_within_a_minute(cards, means, seconds, recovery):
    answers, _, clock = recovery
    answers.append(ip(*cards))
    with pytest.raises(NetworkPlaceFailed, match=means) as caught:
        network.bring_up()
    assert clock[0] <= seconds
    assert caught.value.hint


def test_an_address_that_was_set_is_set_again_and_dhcp_is_left_alone(recovery, monkeypatch, tmp_path):
    answers, ran, _ = recovery
    monkeypatch.setattr(network, "_RESOLVER", tmp_path / "resolv.conf")
    answers.append(ip(("eth0", False, []), ("eth1", True, [])))
    network.set_address(" 192.0.2.9/24  192.0.2.1 192.0.2.53")
    assert network.address_set() == "192.0.2.9/24,192.0.2.1,192.0.2.53"
    assert (tmp_path / "resolv.conf").read_text() == "nameserver 192.0.2.53\n"
    changes = [argv for argv in ran if argv[:2] != ("ip", "-json")]
    assert changes == [
        ("dhcpcd", "--exit"), ("ip", "link", "set", "eth0", "up"), ("ip", "link", "set", "eth1", "up"),
        ("ip", "address", "flush", "dev", "eth1", "scope", "global"),
        ("ip", "address", "add", "192.0.2.9/24", "dev", "eth1"),
        ("ip", "route", "replace", "default", "via", "192.0.2.1", "dev", "eth1")]
    network.bring_up()
    assert [argv for argv in ran if argv[:2] != ("ip", "-json")] == changes * 2


@pytest.mark.parametrize("said", ["", "192.0.2.9", "192.0.2.9/33", "192.0.2.9/24 gateway", "192.0.2.9/24 1 2 3", "x/24",
                                  "192.0.2.9/24 192.0.2.1 192.0.2.53 192.0.2.54"])
def test_what_is_no_address_of_a_computer_changes_nothing(said, recovery):
    with pytest.raises(NetworkPlaceFailed, match="is no address with its network's length"):
        network.set_address(said)
    assert network.address_set() == ""
    assert recovery[1] == []


# Where the backup is

NFS_SET = replace(SET, backup=BackupReference("h.tar.zst", "/mnt", network=EXPORT.url))


@pytest.fixture
def on_server(monkeypatch, tmp_path):
    """A server's folder with backups, by their paths in it: the ids of their sets; and nothing on this computer."""
    sets: dict[str, str] = {}

    def mounted(place, point, *, write=False):
        if place.server == "gone":
            raise NetworkPlaceFailed("The server gone does not answer.")
        for path in sets:
            (point / path).parent.mkdir(parents=True, exist_ok=True)
            (point / path).touch()
        return point / place.folder

    def set_of(path):
        id = next((id for name, id in sets.items() if str(path).endswith(name)), None)
        return id and replace(NFS_SET, id=id)

    monkeypatch.setattr(volumes, "FOLDER", tmp_path / "volumes")
    monkeypatch.setattr(volumes.network, "mount", mounted)
    monkeypatch.setattr(volumes, "_set_of", set_of)
    monkeypatch.setattr(volumes, "_volumes", lambda own: iter(()))
    monkeypatch.setattr(volumes, "read_first", lambda path: path)
    monkeypatch.setattr(volumes, "read_sif", set_of)
    return sets


def test_a_backup_is_found_on_its_server_by_name_and_below_by_its_sets_id(on_server):
    on_server |= {"h.tar.zst": "another", "old/web/renamed.tar.zst": SET.id}
    found = volumes.find_backup(NFS_SET)
    assert found.place == "nfs://nas/export/backups/old/web/renamed.tar.zst"
    assert found.path.endswith("volumes/nfs-nas-export-backups/old/web/renamed.tar.zst")
    on_server["h.tar.zst"] = SET.id
    assert volumes.find_backup(NFS_SET).place == "nfs://nas/export/backups/h.tar.zst"


def test_what_the_server_says_is_said_if_no_disk_has_a_copy_either(on_server, monkeypatch):
    gone = replace(NFS_SET, backup=replace(NFS_SET.backup, network="nfs://gone/x"))
    with pytest.raises(NetworkPlaceFailed, match="gone does not answer"):
        volumes.find_backup(gone)
    copy = volumes.FoundBackup("/run/x", "/x on STICK (/dev/sdb1)", gone, "/dev/sdb1")
    monkeypatch.setattr(volumes, "on_volumes", lambda set: copy)
    assert volumes.find_backup(gone) == copy


def test_a_backup_that_was_moved_is_named_by_its_folder_or_file(on_server):
    on_server |= {"a/h.tar.zst": SET.id, "a/other.tar.zst": "another"}
    assert volumes.open_backup("nfs://new/x", NFS_SET).place == "nfs://new/x/a/h.tar.zst"
    assert volumes.open_backup("smb://new/x/a/h.tar.zst", NFS_SET).place == "smb://new/x/a/h.tar.zst"
    with pytest.raises(OtherSet):
        volumes.open_backup("smb://new/x/a/other.tar.zst", NFS_SET)
    on_server.pop("a/h.tar.zst")
    with pytest.raises(BackupNotFound, match="was not found at nfs://newer/x or below"):
        volumes.open_backup("nfs://newer/x", NFS_SET)


def test_another_products_backup_is_a_folder_of_the_server(on_server, tmp_path):
    set = replace(NFS_SET, provider=ProviderReference("tar"))
    found = volumes.find_backup(set)
    assert (found.path, found.place) == (str(tmp_path / "volumes/nfs-nas-export-backups"), EXPORT.url)
    assert volumes.open_backup("nfs://new/x", set).path == str(tmp_path / "volumes/nfs-new-x")
    assert volumes.open_backup("sftp:h:/x", set).path == "sftp:h:/x"


def test_every_backup_at_an_address_is_listed(on_server):
    on_server |= {"a/one.tar.zst": "1", "two.tar.zst.001": "2"}
    assert {found.place: found.set.id for found in volumes.backups_at("nfs://nas/x/")} == {
        "nfs://nas/x/two.tar.zst.001": "2", "nfs://nas/x/a/one.tar.zst": "1"}
    [found] = volumes.backups_at("nfs://nas/y/a/one.tar.zst")
    assert (found.place, found.set.id) == ("nfs://nas/y/a/one.tar.zst", "1")


def test_a_password_is_asked_for_unless_it_is_known_or_a_disk_has_a_copy(on_server, server, monkeypatch):
    protected = replace(NFS_SET, backup=replace(NFS_SET.backup, network=SHARE.url))
    assert volumes.password_wanted(NFS_SET) is None
    assert volumes.password_wanted(SET) is None
    assert volumes.password_wanted(protected) == SHARE
    monkeypatch.setattr(volumes, "on_volumes", lambda set: "found")
    assert volumes.password_wanted(protected) is None
    monkeypatch.setattr(volumes, "on_volumes", lambda set: None)
    network.remember(SHARE, b"x")
    assert volumes.password_wanted(protected) is None
