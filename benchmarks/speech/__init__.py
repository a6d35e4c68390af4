"""Speech: made sentences, and a reference of Whisper's scores without kdalign."""
