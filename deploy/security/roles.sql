-- Makes two roles without rights over the server: the owner of the schema, which
-- migrates, and the service's, which deploy/security/postgres.sql gives its rights
-- after the migration. Run it once, as an administrator, in the service's database:
--
--   psql -v owner=owner -v owner_password=… -v role=processor -v password=… -f deploy/security/roles.sql

\set ON_ERROR_STOP on

begin;

create role :"owner" login password :'owner_password';
create role :"role" login password :'password';

-- The schema public since Postgres 15, and the service's own, are the owner's to make.
select format('grant create on database %I to %I', current_database(), :'owner') \gexec
grant create, usage on schema public to :"owner";

commit;
