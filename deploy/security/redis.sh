#!/bin/sh
# Makes the service's user in Redis with the least rights that work, or renews
# them. Run it as an administrator, at each node of a Cluster. Where Redis keeps an ACL file, it is saved.
#
#   REDIS_PASSWORD_FILE=/run/secrets/redis deploy/security/redis.sh -u redis://admin@redis:6379
#
# REDIS_USER, REDIS_TELEMETRY_STREAM, REDIS_CONSUMER_GROUP, REDIS_DLQ_STREAM,
# RECOMPUTE_STREAM and TIMING_STREAM as the service has them; the arguments are redis-cli's.
# Of several streams each is listed by its whole name, a,b. OPERATOR=true makes a user for
# processor dlq retry, which adds to the stream, and streams remove, which removes the
# group; the service does neither.
set -eu

user=${REDIS_USER:-processor}
streams=${REDIS_TELEMETRY_STREAM:-telemetry:teltonika}
group=${REDIS_CONSUMER_GROUP:-processor}
recompute=${RECOMPUTE_STREAM:-recompute:requests}
case $streams in
*{*..*}*) echo "REDIS_TELEMETRY_STREAM: list each stream by its whole name, here without {0..7}" >&2; exit 1 ;;
esac
# Redis keeps the digest only; what is on a command line others can see.
digest=$(tr -d '\r\n' <"${REDIS_PASSWORD_FILE:?names the file with the password}" | sha256sum | cut -d ' ' -f 1)

# Without a key: the connection, what the server says of itself and names of keys.
set -- "$@" acl setuser "$user" reset on "#$digest" \
	+ping +hello +auth +select +time +info '+client|setname' '+cluster|slots' '+cluster|shards' \
	+command +readonly +multi +exec '+script|load' +scan +publish +subscribe +unsubscribe

reading='+exists +xlen +xrange +xrevrange +xread +xpending +xinfo|stream +xinfo|groups +xinfo|consumers'
consuming='+xreadgroup +xack +xclaim +xgroup|create +xgroup|setid +xgroup|delconsumer'
set -f
IFS=,
for stream in $streams; do
	dlq="~$stream:dlq"
	case $stream in
	*{*) ;;
	*) dlq="$dlq ~{$stream}:dlq" ;; # on a Cluster
	esac
	if [ -n "${REDIS_DLQ_STREAM:-}" ]; then dlq="~$REDIS_DLQ_STREAM"; fi
	case $stream in
	*{*}*) own=$stream:$group ;;
	*) own="{$stream}:$group" ;;
	esac
	set -- "$@" "&$own:notify" "&$own:live"

	# Each pair of brackets is a selector: its commands on its keys and no others. A
	# script may be given all keys, but what it calls is checked like any command.
	set -- "$@" "(~$stream $dlq ~$recompute ~$own:* +eval +evalsha)"

	# Consumed and read, never added to, trimmed, deleted or overwritten.
	set -- "$@" "(~$stream ~$recompute $reading $consuming)"
	if [ "${OPERATOR:-}" = true ]; then set -- "$@" "(~$stream +xadd +xgroup|destroy)"; fi

	# Dead letters come one by one and go one by one.
	set -- "$@" "($dlq $reading +xadd +xdel)"

	# Lock, lease, heartbeats, marks and losses, all under its own prefix.
	set -- "$@" "(~$own:* +get +getrange +mget +set +del +exists +pexpire +pttl \
+hget +hmget +hset +hsetnx +hdel +hexists +hgetall +hlen +hscan +llen +lrange +lrem +ltrim +rpush +sadd +srem +smembers)"
done

# Changes of crossings are added, the last one is read, and before the first one its groups, which only
# another program would have.
if [ -n "${TIMING_STREAM:-}" ]; then set -- "$@" "(~$TIMING_STREAM +xrevrange +xadd +xinfo|groups +eval +evalsha)"; fi

# Everything that begins with the platform's prefix may be looked at, so that a
# wrong stream name can be told from a quiet one.
set -- "$@" "(%R~telemetry:* +xlen +xinfo|groups)"

answer=$(redis-cli -e "$@")
[ "$answer" = OK ] || { echo "$answer" >&2; exit 1; }
