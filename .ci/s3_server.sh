#!/bin/bash
# usage: s3_server.sh up DIR [BASEPORT] | down DIR
# A real S3 server for tests: one-node Ceph (mon, in-memory osd, radosgw) on 127.0.0.1, all state in DIR.
# Needs the packages radosgw ceph-mon ceph-osd ceph-common. Prints the endpoint. Key and secret as below.
set -eu
case "$1" in
down)
  for p in rgw osd mon; do [ -f "$2/$p.pid" ] && kill "$(cat "$2/$p.pid")" 2>/dev/null || true; done
  exit 0 ;;
up) ;;
*) echo "usage: $0 up DIR [BASEPORT] | down DIR" >&2; exit 2 ;;
esac
mkdir -p "$2"/{mon,osd,log,run,rgw}
C=$(readlink -f "$2"); P=${3:-17300}; cd "$C"; export CEPH_CONF=$C/ceph.conf
FSID=$(cat /proc/sys/kernel/random/uuid)
cat > ceph.conf <<X
[global]
fsid = $FSID
mon host = [v2:127.0.0.1:$P,v1:127.0.0.1:$((P+1))]
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = $C/\$name.keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
mon allow pool size one = true
osd crush chooseleaf type = 0
run dir = $C/run
admin socket = $C/run/\$name.asok
log file = $C/log/\$name.log
pid file = $C/run/\$name.pid
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind port min = $((P+10))
ms bind port max = $((P+90))
mon data avail crit = 1
[mon.a]
mon data = $C/mon
[osd.0]
osd data = $C/osd
osd objectstore = memstore
memstore device bytes = 1073741824
osd class load list = *
osd class default list = *
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:$((P+180)) tcp_nodelay=1
rgw data = $C/rgw
rgw thread pool size = 32
X
wait_for() { for _ in $(seq 200); do "$@" >/dev/null 2>&1 && return; sleep 0.3; done; echo "not ready: $*" >&2; exit 1; }
ceph-authtool --create-keyring mon.keyring --gen-key -n mon. --cap mon 'allow *' >/dev/null
ceph-authtool --create-keyring client.admin.keyring --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' >/dev/null
ceph-authtool mon.keyring --import-keyring client.admin.keyring >/dev/null
monmaptool --create --clobber --fsid "$FSID" --addv a "[v2:127.0.0.1:$P,v1:127.0.0.1:$((P+1))]" monmap >/dev/null
ceph-mon --mkfs -i a --monmap monmap --keyring mon.keyring >/dev/null 2>&1
ceph-mon -i a -f >log/mon.out 2>&1 & echo $! >mon.pid
wait_for timeout 5 ceph -s
U=$(cat /proc/sys/kernel/random/uuid); ceph-authtool --create-keyring osd.0.keyring --gen-key -n osd.0 >/dev/null
echo "{\"cephx_secret\": \"$(ceph-authtool -p -n osd.0 osd.0.keyring)\"}" | ceph osd new "$U" -i - >/dev/null
ceph-osd -i 0 --mkfs --osd-uuid "$U" >/dev/null 2>&1
ceph-osd -i 0 -f >log/osd.out 2>&1 & echo $! >osd.pid
wait_for bash -c "ceph osd dump | grep -q '^osd.0 up'"
ceph auth get-or-create client.rgw.a mon 'allow rwx' osd 'allow rwx' -o client.rgw.a.keyring
radosgw -d -n client.rgw.a >log/rgw.out 2>&1 & echo $! >rgw.pid
wait_for bash -c "exec 3<>/dev/tcp/127.0.0.1/$((P+180))"
radosgw-admin user create --uid=app --display-name=app --access-key=testkey123 --secret-key=testsecret123 >/dev/null 2>&1
for role in producer worker operator; do  # may do nothing before a bucket's policy says so
  radosgw-admin user create --uid=$role --display-name=$role --access-key=$role-key --secret-key=$role-secret >/dev/null 2>&1
done
echo "http://127.0.0.1:$((P+180))"
