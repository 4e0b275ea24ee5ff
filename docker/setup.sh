#!/bin/sh
# Prepares Elasticsearch for Kibana and for the indexer: Kibana's own user gets its password, the
# indexer a role and a user. Also writes the indexer's configuration file, which holds what has to
# stay the same from the first start on. Safe to repeat.
#
# usage: setup.sh WRITER_ROLE_JSON CONFIG_FILE
# environment: ELASTICSEARCH (URL), ELASTIC_PASSWORD, KIBANA_PASSWORD, WRITER_PASSWORD,
#     TELEPORT_ADDR (empty: the stand-in), START_TIME (may be empty)
set -eu
role=$1
config=$2

for password in "$ELASTIC_PASSWORD" "$KIBANA_PASSWORD" "$WRITER_PASSWORD"; do
  case $password in
    *[\"\\]*)
      echo 'setup: a password must hold neither " nor \' >&2
      exit 2
      ;;
  esac
done

# send METHOD PATH BODY; a server that has just started may refuse a right password for a moment.
send() {
  if ! answer=$(curl --silent --show-error --fail-with-body --retry 15 --retry-delay 2 \
    --retry-all-errors --user "elastic:$ELASTIC_PASSWORD" -X "$1" "$ELASTICSEARCH$2" \
    -H 'content-type: application/json' --data-binary "$3"); then
    echo "setup: $1 $2 failed: $answer" >&2
    exit 1
  fi
  echo "setup: $1 $2 done"
}

send POST /_security/user/kibana_system/_password "{\"password\": \"$KIBANA_PASSWORD\"}"
send PUT /_security/role/teleport-event-indexer-writer "@$role"
send PUT /_security/user/teleport-event-indexer \
  "{\"password\": \"$WRITER_PASSWORD\", \"roles\": [\"teleport-event-indexer-writer\"]}"

start=$START_TIME
if [ -z "$start" ] && [ ! -e "$config" ] && [ -z "$TELEPORT_ADDR" ]; then
  # The stand-in's events lie in the last days. In seconds, which every `date` understands.
  start=$(date -u -d "@$(($(date +%s) - 7 * 86400))" +%Y-%m-%d)
fi
if [ -n "$start" ]; then
  printf 'start-time = "%s"\n' "$start" > "$config"
elif [ ! -e "$config" ]; then
  : > "$config"
fi
chmod 0644 "$config"
echo "setup: configuration: $(cat "$config")"
