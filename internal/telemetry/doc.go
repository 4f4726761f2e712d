// Package telemetry holds the shared domain types and the contract with the
// publisher: a stream entry as a neutral value, the record it decodes to, and the
// hash that assigns a device to its shard.
//
// Promises:
//
//   - Decoding is a function of the entry. It never panics, and either fills
//     the whole record or returns a *DecodeError that says what to do with the
//     entry (its class) and which field is at fault. The error repeats names of
//     fields, never values, is short, and is valid UTF-8 without NUL.
//   - A record that decodes is accepted by Postgres: every number fits its column,
//     the attributes are JSON that jsonb accepts, no text has a NUL. One bad entry
//     therefore never fails a batch.
//   - Numbers survive exactly. Attributes keep their digits as published, a big
//     integer becomes a JSON string of its decimal digits, and bytes become a
//     JSON string of their base64 text. Real columns get the nearest real, times
//     are cut to microseconds.
//   - Unknown data passes through: unknown payload fields are checked to be JSON
//     and dropped, unknown attributes are stored unchanged.
//   - Cost is bounded by the payload's length: one pass, no backtracking, no
//     quadratic search for duplicate keys, and less than one allocation per record
//     (docs/adr/0011-own-code-and-libraries.md).
//   - ShardOf never changes; test vectors pin it.
//
// A payload key that is missing or of another JSON type is of class decode,
// since a newer version may understand it; a value outside its range is invalid.
package telemetry
