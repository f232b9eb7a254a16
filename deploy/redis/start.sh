#!/bin/sh
# usage: start.sh SERVER [OPTION…]   Runs a Redis or Valkey server with the users of users.acl.template.
# The passwords come in the environment (REDIS_ADMIN_PASSWORD, REDIS_WORKER_PASSWORD,
# REDIS_PRODUCER_PASSWORD). The server gets their SHA-256 only, in a file: not in its arguments, which
# `ps` shows, nor in its environment.
set -eu
acl=${TMPDIR:-/tmp}/ramole-users.acl

hash() {
  [ -n "$1" ] || { echo "start.sh: a password is empty" >&2; exit 1; }
  printf %s "$1" | sha256sum | cut -d ' ' -f 1
}

admin=$(hash "${REDIS_ADMIN_PASSWORD:-}")
worker=$(hash "${REDIS_WORKER_PASSWORD:-}")
producer=$(hash "${REDIS_PRODUCER_PASSWORD:-}")
rm -f "$acl"
# The server wants one line for each user and no comments.
grep -v '^#' "$(dirname "$0")/users.acl.template" | tr -s ' \n' ' ' | sed \
  -e "s/@ADMIN@/$admin/; s/@WORKER@/$worker/; s/@PRODUCER@/$producer/" \
  -e 's/ user /\nuser /g' -e 's/^ *//' >"$acl"
echo >>"$acl"
chmod 644 "$acl" # the image's entrypoint gives up root before the server reads it

unset REDIS_ADMIN_PASSWORD REDIS_WORKER_PASSWORD REDIS_PRODUCER_PASSWORD REDISCLI_AUTH
exec "$@" --aclfile "$acl"
