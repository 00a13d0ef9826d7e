#!/usr/bin/env bash
# Brings the foreign judges that the tests named TestPeer… ask: a bootloader in
# an emulator, imgtool, openssl, PostgreSQL, and firmware from Debian packages.
# Everything that is not a Debian package goes below .peers (or
# $FIRMSEAL_PEERS_DIR). It may be run again at any time: what is there is left
# alone, and a run that was cut short leaves nothing that looks finished.
set -euo pipefail
cd "$(dirname "$0")/.."

peers=${FIRMSEAL_PEERS_DIR:-$PWD/.peers}
system=(u-boot-qemu qemu-system-arm device-tree-compiler u-boot-tools postgresql-15 openssl)
firmware=(hackrf-firmware opensbi u-boot-qemu firmware-microbit-micropython crust-firmware)
tools=(qemu-system-aarch64 mkimage dumpimage dtc openssl initdb postgres)

say() { printf 'peers: %s\n' "$*"; }
die() {
	printf 'peers: %s\n' "$*" >&2
	exit 1
}

for need in apt-get dpkg-deb dpkg-query python3; do
	command -v "$need" >/dev/null || die "$need is missing: the peers come from Debian (or Ubuntu) and PyPI"
done
mkdir -p "$peers/bin" "$peers/deb" "$peers/cache"

updated=
update() {
	[ -z "$updated" ] || return 0
	updated=yes
	[ "$(id -u)" = 0 ] || die "apt knows no such package as $1; run: sudo apt-get update"
	apt-get -qq update
}

# 1. Debian packages that are installed.
installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
missing=()
for p in "${system[@]}"; do
	installed "$p" || missing+=("$p")
done
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
	[ "$(id -u)" = 0 ] || die "some packages are missing; run: sudo apt-get install -y --no-install-recommends ${missing[*]}"
	update
	# The tests start their own PostgreSQL. Debian's package would make a
	# cluster and start it; for the time of the installation it is told not to.
	no_cluster=/etc/postgresql-common/createcluster.d/firmseal-peers.conf
	mkdir -p "$(dirname "$no_cluster")"
	trap 'rm -f "$no_cluster"' EXIT
	echo 'create_main_cluster = false' >"$no_cluster"
	say "installing ${missing[*]}"
	DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" </dev/null
	rm -f "$no_cluster"
fi

# 2. Debian packages that are only unpacked: real firmware to sign.
for p in "${firmware[@]}"; do
	[ -d "$peers/deb/$p" ] && continue
	apt-cache show "$p" >/dev/null 2>&1 || update "$p"
	say "fetching $p"
	work=$peers/cache/$p
	rm -rf "$work"
	mkdir -p "$work/root"
	sandbox=()
	[ "$(id -u)" = 0 ] && sandbox=(-o APT::Sandbox::User=root)
	(cd "$work" && apt-get -qq "${sandbox[@]}" download "$p")
	dpkg-deb -x "$work"/*.deb "$work/root"
	mv "$work/root" "$peers/deb/$p"
	rm -rf "$work"
done

# 3. Python judges, in their own environment. The list of pins is copied in last:
# an environment without it, or with another list, is built anew.
pins=scripts/peers-requirements.txt
if ! cmp -s "$pins" "$peers/venv/pins.txt" || ! "$peers/venv/bin/python" -c '' 2>/dev/null; then
	say "building the Python environment"
	rm -rf "$peers/venv"
	python3 -m venv "$peers/venv"
	"$peers/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -r "$pins" </dev/null
	cp "$pins" "$peers/venv/pins.txt"
fi
ln -sfn ../venv/bin/imgtool "$peers/bin/imgtool"

# 4. Does each answer?
"$peers/bin/imgtool" version >/dev/null || die "imgtool does not run"
"$peers/venv/bin/python" -c 'import securesystemslib, cryptography' || die "the Python judges do not load"
for t in "${tools[@]}"; do
	PATH=$peers/bin:$PATH:/usr/sbin:/usr/lib/postgresql/15/bin command -v "$t" >/dev/null || die "$t is not there after all"
done
say "all here, in $peers"
