package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// uploadPart begins an upload with the plain HTTP calls of the API and sends
// the first n bytes.
func uploadPart(file []byte, url, token string, n int64) error {
	sum := sha256.Sum256(file)
	digest := hex.EncodeToString(sum[:])
	call := func(method, path, mediaType string, body []byte) error {
		req, err := http.NewRequest(method, url+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", mediaType)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if b, err := io.ReadAll(res.Body); err != nil || res.StatusCode != 200 {
			return fmt.Errorf("%s %s: %s %s %w", method, path, res.Status, b, err)
		}
		return nil
	}
	start, err := json.Marshal(map[string]any{"sha256": digest, "size": len(file)})
	if err != nil {
		return err
	}
	if err := call(http.MethodPost, "/api/v1/uploads", "application/json", start); err != nil {
		return err
	}
	return call(http.MethodPatch, fmt.Sprintf("/api/v1/uploads/%s?size=%d&offset=0", digest, len(file)), "application/octet-stream", file[:n])
}
