#!/bin/sh
# Makes the service's user in Redis with the least rights that work, or renews
# them. Run it as an administrator. Where Redis keeps an ACL file, it is saved.
#
#   REDIS_PASSWORD_FILE=/run/secrets/redis deploy/security/redis.sh -u redis://admin@redis:6379
#
# REDIS_USER, REDIS_TELEMETRY_STREAM, REDIS_CONSUMER_GROUP, REDIS_DLQ_STREAM and
# RECOMPUTE_STREAM as the service has them; the arguments are redis-cli's.
set -eu

user=${REDIS_USER:-processor}
stream=${REDIS_TELEMETRY_STREAM:-telemetry:teltonika}
group=${REDIS_CONSUMER_GROUP:-processor}
dlq=${REDIS_DLQ_STREAM:-$stream:dlq}
recompute=${RECOMPUTE_STREAM:-recompute:requests}
case $stream in
*{*}*) own=$stream:$group ;;
*) own="{$stream}:$group" ;;
esac
# Redis keeps the digest only; what is on a command line others can see.
digest=$(tr -d '\r\n' <"${REDIS_PASSWORD_FILE:?names the file with the password}" | sha256sum | cut -d ' ' -f 1)

# Names of keys. Everything that begins with the platform's prefix may be looked
# at, so that a wrong stream name can be told from a quiet one.
set -- "$@" acl setuser "$user" reset on "#$digest" \
	"~$stream" "~$dlq" "~$recompute" "~$own:*" '%R~telemetry:*' "&$own:notify"

# The connection, and what the server says of itself.
set -- "$@" +ping +hello +auth +select +time +info '+client|setname' '+cluster|slots' '+cluster|shards' \
	+command +readonly +multi +exec

# The stream, its group and the dead letters. No DEL of streams, no XTRIM.
set -- "$@" +xadd +xack +xclaim +xdel +xlen +xpending +xrange +xrevrange +xread +xreadgroup \
	'+xinfo|stream' '+xinfo|groups' '+xinfo|consumers' '+xgroup|create' '+xgroup|setid' '+xgroup|delconsumer'

# Lock, turn, heartbeats, marks, losses and doorbells, all under its own prefix.
set -- "$@" +eval +evalsha '+script|load' +get +getrange +mget +set +del +exists +pexpire +pttl +hget +hmget +hset +hsetnx +hdel +hgetall +hscan \
	+llen +lrange +lrem +ltrim +rpush +sadd +srem +smembers +scan +publish +subscribe +unsubscribe

answer=$(redis-cli -e "$@")
[ "$answer" = OK ] || { echo "$answer" >&2; exit 1; }
