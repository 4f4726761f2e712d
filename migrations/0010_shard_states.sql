-- +goose Up

-- What the owner of a shard leaves of the state of its devices when it releases the shard.
-- The next acquisition takes it away, by any member, and uses it for half a minute
-- after the release: what is done to positions while the service is down is seen. Not logged: after a crash of the
-- server it is empty, and devices are loaded from positions.
--
-- Way back: drop table processor.shard_states.

create unlogged table if not exists processor.shard_states (
  stream text not null,
  group_name text not null,
  shard integer not null,
  state bytea not null,
  left_at timestamptz not null default now(),
  primary key (stream, group_name, shard)
);

alter table processor.shard_states alter column state set storage external;

comment on table processor.shard_states is
  'The last positions of the devices of released shards, for their next owners, who take them away. May be emptied at any time.';
comment on column processor.shard_states.stream is
  'Name of the source stream.';
comment on column processor.shard_states.group_name is
  'Name of the consumer group.';
comment on column processor.shard_states.shard is
  'Number of the shard, from 0.';
comment on column processor.shard_states.state is
  'Versioned and checksummed; says of which epoch it is.';
comment on column processor.shard_states.left_at is
  'When it was left. It is not used half a minute later.';
