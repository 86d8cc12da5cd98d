#!/bin/bash
# Starts Ceph RGW on loopback, from Debian's packages, without root: one monitor, one OSD in memory, one gateway, all
# below the folder DIR. Prints "ENDPOINT ACCESS_KEY SECRET_KEY", and stops everything when its input ends.
#
#     rgw.sh DIR [USER...]
#
# Each further user owns nothing and has the keys wmtp-USER-key and wmtp-USER-secret. Ends with 3 where a program is missing. Its keys are no secret: the server is gone with the test.
set -euo pipefail
for program in ceph ceph-mon ceph-osd ceph-authtool monmaptool radosgw radosgw-admin curl; do
    command -v "$program" > /dev/null || exit 3
done
dir=$(realpath "$1")
mkdir -p "$dir"/{mon,osd,rgw,run}
fsid=$(cat /proc/sys/kernel/random/uuid)
osd=$(cat /proc/sys/kernel/random/uuid)

# A port that nobody listens on.
free_port() {
    local port
    while port=$(shuf -n 1 -i 20000-30000); (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do :; done
    echo "$port"
}
monitor=$(free_port)
gateway=$(free_port)

cat > "$dir/ceph.conf" << END
[global]
fsid = $fsid
mon host = [v2:127.0.0.1:$monitor]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = $dir/keyring
run dir = $dir/run
admin socket = $dir/run/\$name.asok
log file = $dir/\$name.log
crash dir = $dir/run
mon data = $dir/mon
osd data = $dir/osd
rgw data = $dir/rgw
osd objectstore = memstore
memstore device bytes = 4294967296
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd class load list = *
osd class default list = *
mon allow pool size one = true
mon data avail crit = 1
rgw frontends = beast endpoint=127.0.0.1:$gateway
END
export CEPH_ARGS="--conf $dir/ceph.conf"

# Output goes to a log; what started is told on 3, what failed on 4.
exec 3>&1 4>&2 > "$dir/start.log" 2>&1
has_started=
stop() {
    trap - EXIT
    [ -n "$has_started" ] || tail -n 20 "$dir/start.log" >&4
    local running
    running=$(jobs -p)
    [ -z "$running" ] || kill -9 $running 2> /dev/null || true
    wait 2> /dev/null || true
}
trap stop EXIT

# Waits for a minute at most until a command holds.
until_holds() {
    for _ in {1..300}; do
        "$@" && return
        sleep 0.2
    done
    echo "it did not come to hold: $*"
    return 1
}
osd_is_up() { ceph osd stat | grep -q '1 up'; }
gateway_answers() { curl -s -o /dev/null "http://127.0.0.1:$gateway"; }

ceph-authtool --create-keyring "$dir/keyring" --gen-key -n mon. --cap mon 'allow *'
for name in client.admin client.rgw osd.0; do
    ceph-authtool "$dir/keyring" --gen-key -n "$name" --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
done
monmaptool --create --addv a "[v2:127.0.0.1:$monitor]" --fsid "$fsid" "$dir/monmap"
ceph-mon --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/keyring"
ceph-mon -f -i a 3>&- 4>&- &
ceph auth import -i "$dir/keyring"
ceph osd new "$osd"
ceph-osd --mkfs -i 0 --osd-uuid "$osd"
ceph osd crush add osd.0 1.0 root=default host=here
ceph-osd -f -i 0 3>&- 4>&- &
until_holds osd_is_up
radosgw -f -n client.rgw 3>&- 4>&- &
until_holds gateway_answers
radosgw-admin user create --uid wmtp --display-name wmtp --access-key wmtp-test-key --secret-key wmtp-test-secret
for user in "${@:2}"; do
    radosgw-admin user create --uid "$user" --display-name "$user" --access-key "wmtp-$user-key" --secret-key "wmtp-$user-secret"
done

has_started=1
echo "http://127.0.0.1:$gateway wmtp-test-key wmtp-test-secret" >&3
exec 3>&-
cat > /dev/null
