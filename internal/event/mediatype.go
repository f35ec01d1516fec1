package event

import "strings"

// MediaType is the media type of a header Content-Type, in lower case and without parameters. Senders write parameters
// badly, and proxies join two headers into one. Nothing rests on either. It is empty where the header names none.
func MediaType(contentType string) string {
	media, _, _ := strings.Cut(contentType, ";")
	media, _, _ = strings.Cut(media, ",")
	return strings.ToLower(strings.TrimSpace(media))
}
