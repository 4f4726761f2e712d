package telemetry

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Class is the class of a failure; it decides what happens to the entry.
type Class string

const (
	// ClassDecode is an entry that this version does not understand: not JSON,
	// truncated, a missing payload key, another JSON type than expected, an
	// unknown sentinel. A newer version may understand it, so it is worth
	// another attempt.
	ClassDecode Class = "decode"
	// ClassInvalid is an entry that is understood and breaks a rule. A retry
	// cannot change that.
	ClassInvalid Class = "invalid"
	// ClassTooLarge is an entry beyond one of the Limits.
	ClassTooLarge Class = "too_large"
)

// DecodeError is why an entry is not a record. It contains names of fields but
// never their values, so it is safe to log where positions are not.
type DecodeError struct {
	Class  Class
	Field  string // such as payload.latitude or payload.attributes["240"]
	Rule   string // short and stable, one of the Rule constants
	Reason string // the rule in words
}

// Rules that an entry can break, the stable part of a Fingerprint.
const (
	RuleMissing       = "missing"
	RuleSyntax        = "syntax"
	RuleTruncated     = "truncated"
	RuleUTF8          = "utf8"
	RuleType          = "type"
	RuleSentinel      = "sentinel"
	RuleRange         = "range"
	RuleInteger       = "integer"
	RuleTime          = "time"
	RuleText          = "text"
	RuleMismatch      = "mismatch"
	RuleDuplicateKey  = "duplicate_key"
	RuleNUL           = "nul"
	RuleSurrogate     = "surrogate"
	RuleDigits        = "digits"
	RuleBase64        = "base64"
	RuleByte          = "byte"
	RulePayloadBytes  = "payload_bytes"
	RuleDepth         = "depth"
	RuleMaxAttributes = "attributes"
)

// Error returns class, field and reason on one line.
func (e *DecodeError) Error() string {
	return string(e.Class) + ": " + e.Field + ": " + e.Reason
}

// Fingerprint groups failures of one kind: class, field and rule, with the
// keys of attributes and of unknown payload fields left out. It is the same
// for every entry that fails the same way.
func (e *DecodeError) Fingerprint() string {
	field := e.Field
	if at := strings.IndexByte(field, '['); at >= 0 {
		field = field[:at] + "[*]"
	}
	return string(e.Class) + "/" + field + "/" + e.Rule
}

// maxKeyRunes bounds how much of a key an error repeats.
const maxKeyRunes = 32

// indexed is parent["key"], with the key cut short and escaped to ASCII.
func indexed(parent, key string) string {
	cut := false
	n := 0
	for at := range key {
		if n++; n > maxKeyRunes {
			key, cut = key[:at], true
			break
		}
	}
	if !utf8.ValidString(key) {
		key = strings.ToValidUTF8(key, "\uFFFD")
	}
	if cut {
		key += "..."
	}
	return fmt.Sprintf("%s[%+q]", parent, key)
}
